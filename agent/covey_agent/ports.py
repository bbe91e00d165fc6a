"""What the agent's parts need from outside, as small Protocols; `adapters/` has the real ones, `tests/fakes/` others."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Protocol

import msgspec

from covey_agent.core.buffer import Entry
from covey_agent.core.jobs import Order
from covey_agent.core.policy import LedgerEntry
from covey_agent.core.walltime import ClockState
from covey_contract.messages import Priority


class Clock(Protocol):
    """Time. Deadlines use `monotonic`; `now` never goes back behind a time that was already persisted."""

    def now(self) -> datetime: ...

    def now_ms(self) -> int: ...

    def monotonic(self) -> float: ...

    @property
    def state(self) -> ClockState:
        """Whether the wall clock is believed."""
        ...

    def confirm(self) -> None:
        """A TLS connection came about under the present time, so it is about right."""
        ...


class Broker(Protocol):
    """The MQTT connection. It keeps itself connected; what happens to it arrives as events in the inbox."""

    def start(self) -> None: ...

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> bool:
        """Hand over one message with QoS 1. False: not connected or congested, the caller tries again later."""
        ...

    def renew(self) -> None:
        """Connect anew, if connected, so that a renewed certificate is used; politely, without a last will."""
        ...

    def stop(self) -> None: ...


class Child(Protocol):
    """One running child program."""

    @property
    def id(self) -> int: ...

    @property
    def program(self) -> str: ...

    def send(self, order: Order) -> None:
        """One line to its standard input. A child that is gone is no error: its end arrives as an event."""
        ...

    def close_input(self) -> None: ...

    def kill(self, reason: str) -> None:
        """End it at once; the event of its end carries this reason."""
        ...


class Children(Protocol):
    """Starts child programs; what they say and how they end arrives as events in the inbox."""

    def start(self, program: str, job: msgspec.Struct, *, pass_fds: Sequence[int] = (), memory_limit: int = 0) -> Child:
        """Start `covey_agent.workers.<program>`; `memory_limit` in bytes, 0: none."""
        ...

    def stop_all(self, *, grace_s: float) -> None: ...


class StateStore(Protocol):
    """Small values that must survive a power cut, and counters that never repeat."""

    def load(self, key: str) -> bytes | None: ...

    def save(self, values: Mapping[str, bytes | None], *, durable: bool = True) -> None:
        """All of them in one transaction; None deletes. Durable: on the disk when this returns."""
        ...

    def reserve(self, counter: str, count: int) -> int:
        """The first of `count` numbers that were never handed out before; durable."""
        ...


class CommandStore(Protocol):
    """Answers to commands, for the server's repetitions and for ours."""

    def save_reply(self, command: str, payload: bytes, *, expires_at: int) -> None: ...

    def find_reply(self, command: str) -> bytes | None: ...

    def open_replies(self, now: int) -> list[bytes]: ...

    def forget_replies(self, before: int) -> None: ...


class LedgerStore(Protocol):
    """The append-only privacy ledger."""

    def append_charge(self, entry: LedgerEntry) -> None:
        """Durable when this returns."""
        ...

    def charges(self) -> list[LedgerEntry]: ...


class ReadingStore(Protocol):
    """Readings on disk."""

    @property
    def epoch(self) -> str: ...

    def begin_epoch(self, *, told: Mapping[Priority, int]) -> None:
        """Everything held goes on under a new epoch; losses that the server was told stay with the old one."""
        ...

    def append(self, entries: Sequence[Entry], *, durable: bool, settles: Sequence[str] = ()) -> None: ...

    def oldest(self, limit: int) -> list[Entry]: ...

    def delete_through(self, sequence: int) -> None: ...

    def drop_oldest(self, priority: Priority, *, size: int) -> int:
        """Drop at least `size` bytes of this priority, oldest first, and count them as lost. Returns how many readings."""
        ...

    def drop_made(self, since: int, before: int) -> int: ...

    def sizes(self) -> dict[Priority, int]:
        """Bytes held, by priority."""
        ...

    def lost(self) -> dict[Priority, int]: ...

    def add_lost(self, priority: Priority, count: int) -> None: ...


class Sockets(Protocol):
    """The listening sockets of the local API, and the queue between its workers; they outlive every worker."""

    @property
    def unix_fd(self) -> int: ...

    @property
    def tcp_fd(self) -> int: ...

    @property
    def token(self) -> str: ...

    @property
    def handover_fds(self) -> tuple[int, int]: ...

    def close(self) -> None: ...
