"""From a topic and bytes to handlers: parse, validate, count refusals, run the handlers in one transaction.

The order is: topic -> contract message -> handlers -> rows and outbox in one transaction -> commit. Whatever is too big,
malformed, stale or about another device is counted by reason, logged once as WARNING and then as DEBUG, and dropped: bad
input never stops the worker. Handlers are registered per channel by `app.py`; several handlers of one channel run in the
order of their registration, all or none of them.

`route_many` puts a burst of messages into one transaction, each behind its own savepoint: a refused one takes nothing with it.
"""

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlmodel import Session

from covey_contract import codec
from covey_contract.errors import ContractError
from covey_contract.ids import DeviceId
from covey_contract.messages import ReadingBatch, Renewal, Reply, Reported, Status
from covey_contract.topics import Channel, parse_topic
from covey_server.errors import CoveyServerError
from covey_server.parts import Parts

logger = logging.getLogger(__name__)

Handler = Callable[[Parts, Session, DeviceId, Any], None]

_DECODERS: dict[Channel, Callable[[bytes], Any]] = {
    Channel.STATUS: lambda payload: codec.decode(payload, Status),
    Channel.REPORTED: lambda payload: codec.decode(payload, Reported),
    Channel.READINGS: lambda payload: codec.decode(payload, ReadingBatch),
    Channel.REPLY: lambda payload: codec.decode(payload, Reply),
    Channel.RENEW: lambda payload: codec.decode(payload, Renewal),
    Channel.WANT: codec.decode_want,
}


@dataclass(frozen=True, slots=True)
class _Call:
    """One message that passed the contract."""

    topic: str
    channel: Channel
    device: DeviceId
    message: Any


@dataclass
class Router:
    """Routes incoming messages; `refused` counts by reason and `handled` by channel, for /metrics."""

    parts: Parts
    handlers: dict[Channel, list[Handler]] = field(default_factory=dict)
    refused: Counter[str] = field(default_factory=Counter)
    handled: Counter[str] = field(default_factory=Counter)
    _warned: set[tuple[str, str]] = field(default_factory=set)

    def register(self, channel: Channel, handler: Handler) -> None:
        """Let `handler` take every valid message of one channel, after those registered before it."""
        self.handlers.setdefault(channel, []).append(handler)

    def route(self, topic: str, payload: bytes) -> bool:
        """Handle one message; True if it was handled, False if it was refused and counted."""
        return self.route_many([(topic, payload)]) == 1

    def route_many(self, messages: Sequence[tuple[str, bytes]]) -> int:
        """Handle messages in order, in one transaction; how many were handled. Any error that is not a refusal undoes them all."""
        calls = [call for topic, payload in messages if (call := self._decode(topic, payload)) is not None]
        if not calls:
            return 0
        done: list[_Call] = []
        with self.parts.db.begin() as session:
            for call in calls:
                if self._handle(session, call):
                    done.append(call)
        self.handled.update(call.channel.value for call in done)
        return len(done)

    def _decode(self, topic: str, payload: bytes) -> _Call | None:
        try:
            parsed = parse_topic(topic)
            if parsed.device is None or not self.handlers.get(parsed.channel):
                self.refuse("unexpected_channel", topic, "no handler for this channel")
                return None
            return _Call(topic, parsed.channel, parsed.device, _DECODERS[parsed.channel](payload))
        except ContractError as exc:
            self.refuse(exc.reason, topic, str(exc))
            return None

    def _handle(self, session: Session, call: _Call) -> bool:
        try:
            with session.begin_nested():
                for handler in self.handlers[call.channel]:
                    handler(self.parts, session, call.device, call.message)
        except ContractError as exc:
            self.refuse(exc.reason, call.topic, str(exc))
            return False
        except CoveyServerError as exc:
            self.refuse(type(exc).__name__, call.topic, str(exc))
            return False
        return True

    def refuse(self, reason: str, topic: str, detail: str) -> None:
        """Count and log a message that is dropped."""
        self.refused[reason] += 1
        key = (reason, topic[:200])
        level = logging.DEBUG if key in self._warned else logging.WARNING
        if len(self._warned) < 10_000:  # a flood of different topics must not fill the memory
            self._warned.add(key)
        logger.log(level, "message refused on %.200r: %s (%s)", topic, detail, reason)
