"""Which chunks to send for wants that arrive from many devices at once. Pure: times come in as seconds of any one clock.

All devices that fetch a group listen to the same topic, so one send serves them all. Rules:
- A want waits for `window_s`, so that the others of a wave can join it, then the union of what is lacking is sent once.
- A want joins whatever of its chunks is still to be sent.
- A want that was received before a chunk was sent is served by that send: its device was listening already, because it
  subscribes before it asks. Without this a device whose want waited in a queue would get everything twice.
- A device that asks again for what was sent within `in_flight_s`, and had asked before that send, has not waited long enough: what was
  sent is still on its way through a busy broker or a slow device. Answering would send it twice to everybody and make it worse.
- Whatever else was asked for after its last send is sent again: it got lost, or a device came late. Everybody who still listens gets it
  twice then, so an artifact whose devices come late waits longer for them: its window doubles, up to `most_window_s`, and shrinks
  again while nobody does. Fifty devices that drift apart cost a third more bytes without this (measured).
"""

from collections import Counter, OrderedDict
from dataclasses import dataclass, field

from covey_contract import limits

_ARTIFACTS = 1000  # whose windows are remembered
_GROUPS = 2000  # whose askers are remembered


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
    most_window_s: float = 1.0
    in_flight_s: float = 3.0
    remember_s: float = 5.0  # how long a send is remembered; longer than any want waits in the gateway's queue
    max_groups: int = 10_000
    max_groups_each: int = 8  # that wait on one device's account: one that asks for everything at once holds up nobody else
    _pending: OrderedDict[Group, _Pending] = field(default_factory=OrderedDict)
    _askers: OrderedDict[Group, dict[str, float]] = field(default_factory=OrderedDict)  # who first asked for a group, when
    _windows: OrderedDict[str, float] = field(default_factory=OrderedDict)  # of artifacts whose devices come late
    _waiting: Counter[str] = field(default_factory=Counter)  # groups by who asked first
    _sent: OrderedDict[tuple[Group, int], float] = field(default_factory=OrderedDict)

    def add(self, group: Group, missing: int, *, asked_at: float, asker: str = "") -> int:
        """Note a want that was received at `asked_at`; returns how many of its chunks need no send of their own, -1 if refused."""
        lacking = late = 0
        first_asked_at = self._note_asker(group, asker, asked_at)
        for chunk in _bits(missing):
            sent_at = self._sent.get((group, chunk))
            if sent_at is not None and first_asked_at < sent_at and asked_at - sent_at < self.in_flight_s:
                continue
            if sent_at is None or sent_at < asked_at:
                lacking |= 1 << chunk
                late |= (sent_at is not None and asked_at - sent_at < self.most_window_s) << chunk
        window_s = self._adapt(group.digest, late=bool(late))
        pending = self._pending.get(group)
        if pending is None:
            if lacking and (len(self._pending) >= self.max_groups or self._waiting[asker] >= self.max_groups_each):
                return -1
            if lacking:
                self._pending[group] = _Pending(lacking, due=asked_at + window_s, asker=asker)
                self._waiting[asker] += 1
            return missing.bit_count() - lacking.bit_count()
        fresh = lacking & ~pending.missing
        pending.missing |= lacking
        return missing.bit_count() - fresh.bit_count()

    def _note_asker(self, group: Group, asker: str, asked_at: float) -> float:
        """When this device first asked for the group, as far as that is remembered."""
        if not asker:
            return asked_at
        askers = self._askers.setdefault(group, {})
        self._askers.move_to_end(group)
        first = askers.setdefault(asker, asked_at)
        if asked_at - first > self.remember_s:
            first = askers[asker] = asked_at  # another download
        while len(self._askers) > _GROUPS:
            self._askers.popitem(last=False)
        return first

    def _adapt(self, digest: str, *, late: bool) -> float:
        """How long wants for this artifact wait from now on."""
        window_s = self._windows.get(digest, self.window_s)
        if not late:
            return window_s
        self._remember(digest, min(2 * window_s, self.most_window_s))
        return self.window_s  # who lags is served soon, so that it catches up with those that wait for it

    def _remember(self, digest: str, window_s: float) -> None:
        self._windows.pop(digest, None)
        if window_s > self.window_s:
            self._windows[digest] = window_s
            while len(self._windows) > _ARTIFACTS:
                self._windows.popitem(last=False)

    def next_due(self) -> float | None:
        """When the first group is due; None if nothing waits."""
        return min((pending.due for pending in self._pending.values()), default=None)

    def take(self, now: float) -> tuple[Group, int] | None:
        """The next chunk to send, as its group and its place in it, and remember that it was sent. None if nothing is due."""
        self._forget(now)
        group = next((group for group, pending in self._pending.items() if pending.due <= now), None)
        if group is None:
            return None
        pending = self._pending[group]
        chunk = (pending.missing & -pending.missing).bit_length() - 1
        pending.missing &= pending.missing - 1
        if not pending.missing:
            self._remove(group)
            self._remember(group.digest, 0.9 * self._windows.get(group.digest, 0.0))
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
