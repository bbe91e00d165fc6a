"""Which chunks to send for wants that arrive from many devices at once. Pure: times come in as seconds of any one clock.

All devices that fetch a group listen to the same topic, so one send serves them all. Rules:
- A want waits for `window_s`, so that the others of a wave can join it, then the union of what is lacking is sent once.
- A want joins whatever of its chunks is still to be sent.
- A want that was received before a chunk was sent is served by that send: its device was listening already, because it
  subscribes before it asks. Without this a device whose want waited in a queue would get everything twice.
- Whatever was asked for after its last send is sent again: it got lost, or a device came late.
"""

from collections import Counter, OrderedDict
from dataclasses import dataclass, field

from covey_contract import limits


@dataclass(frozen=True, slots=True)
class Group:
    """One group of one artifact's chunks: one topic."""

    digest: str
    number: int


@dataclass(slots=True)
class _Pending:
    missing: int  # bit i: chunk i of the group
    due: float
    asker: str  # who asked first


@dataclass
class Coalescer:
    """Wants in, chunks to send out, in order of their first want."""

    window_s: float
    remember_s: float = 5.0  # how long a send is remembered; longer than any want waits in the gateway's queue
    max_groups: int = 10_000
    max_groups_each: int = 8  # that wait on one device's account: one that asks for everything at once holds up nobody else
    _pending: OrderedDict[Group, _Pending] = field(default_factory=OrderedDict)
    _waiting: Counter[str] = field(default_factory=Counter)  # groups by who asked first
    _sent: OrderedDict[tuple[Group, int], float] = field(default_factory=OrderedDict)

    def add(self, group: Group, missing: int, *, asked_at: float, asker: str = "") -> int:
        """Note a want that was received at `asked_at`; returns how many of its chunks need no send of their own, -1 if refused."""
        lacking = 0
        for chunk in _bits(missing):
            sent_at = self._sent.get((group, chunk))
            if sent_at is None or sent_at < asked_at:
                lacking |= 1 << chunk
        pending = self._pending.get(group)
        if pending is None:
            if lacking and (len(self._pending) >= self.max_groups or self._waiting[asker] >= self.max_groups_each):
                return -1
            if lacking:
                self._pending[group] = _Pending(lacking, due=asked_at + self.window_s, asker=asker)
                self._waiting[asker] += 1
            return missing.bit_count() - lacking.bit_count()
        fresh = lacking & ~pending.missing
        pending.missing |= lacking
        return missing.bit_count() - fresh.bit_count()

    def next_due(self) -> float | None:
        """When the first group is due; None if nothing waits."""
        first = next(iter(self._pending.values()), None)
        return first.due if first else None

    def take(self, now: float) -> tuple[Group, int] | None:
        """The next chunk to send, as its group and its place in it, and remember that it was sent. None if nothing is due."""
        self._forget(now)
        first = next(iter(self._pending.items()), None)
        if first is None or first[1].due > now:
            return None
        group, pending = first
        chunk = (pending.missing & -pending.missing).bit_length() - 1
        pending.missing &= pending.missing - 1
        if not pending.missing:
            self._remove(group)
        self._sent[(group, chunk)] = now
        self._sent.move_to_end((group, chunk))
        return group, chunk

    def drop(self, digest: str) -> None:
        """Forget what is wanted of an artifact that may not be sent any more."""
        for group in [group for group in self._pending if group.digest == digest]:
            self._remove(group)

    def clear(self) -> None:
        """Forget everything that is wanted: devices ask again by themselves."""
        self._pending.clear()
        self._waiting.clear()

    def _remove(self, group: Group) -> None:
        asker = self._pending.pop(group).asker
        self._waiting[asker] -= 1
        if not self._waiting[asker]:
            del self._waiting[asker]

    def _forget(self, now: float) -> None:
        while self._sent:
            key, sent_at = next(iter(self._sent.items()))
            if sent_at > now - self.remember_s:
                return
            del self._sent[key]


@dataclass
class TokenBucket:
    """At most `rate` units a second on average, `burst` at once."""

    rate: float
    burst: float
    _tokens: float = field(init=False)
    _at: float | None = None

    def __post_init__(self) -> None:
        self._tokens = self.burst

    def wait_s(self, cost: float, now: float) -> float:
        """Take `cost` and return 0, or take nothing and return how long to wait. A cost above the burst is let through alone."""
        if self._at is not None:
            self._tokens = min(self.burst, self._tokens + (now - self._at) * self.rate)
        self._at = now
        needed = min(cost, self.burst)
        if self._tokens >= needed:
            self._tokens -= cost
            return 0.0
        return (needed - self._tokens) / self.rate


def group_bits(length: int, group: int) -> int:
    """A bit for each chunk that group number `group` of an artifact has; 0 if there is no such group."""
    left = limits.chunk_count(length) - group * limits.GROUP_CHUNKS
    return (1 << max(0, min(left, limits.GROUP_CHUNKS))) - 1


def _bits(mask: int) -> list[int]:
    return [bit for bit in range(mask.bit_length()) if mask >> bit & 1]
