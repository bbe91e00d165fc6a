"""Rules of the readings buffer: what a batch holds, what is dropped when there is no room, what is too old to keep.

Rules:
- Every reading gets the next sequence number of its epoch, once and for ever. Numbers may be skipped (after a power cut), never
  used twice; so (device, epoch, sequence) names a reading, and the server can tell a repetition from a new one.
- A reading leaves the buffer only when the server has acknowledged it, or when it is dropped and counted.
- When there is no room, the least important go first (samples, then metrics, then alarms, then results), the oldest of them first.
- A reading whose time lies before `PLAUSIBLE_SINCE` was made while the clock was not set; it is never dropped for its age.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from math import isfinite

import msgspec

from covey_contract import limits
from covey_contract.codec import encode
from covey_contract.errors import PayloadTooLargeError
from covey_contract.messages import Priority, Reading, ReadingBatch

PLAUSIBLE_SINCE = 1_704_067_200_000  # 2024-01-01 UTC in ms: no clock that is set shows an earlier time
DROP_ORDER = (Priority.SAMPLE, Priority.METRIC, Priority.ALARM, Priority.RESULT)
URGENT = frozenset({Priority.RESULT, Priority.ALARM})  # written to disk at once
ROOM_SHARE = 32  # of the limit: dropping is work, and writes to flash
MAX_BATCH_BYTES = 512 * 1024  # before compression: keeps the peak memory of one batch small on a small device
_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Reading)


@dataclass(frozen=True, slots=True)
class Entry:
    """A reading in the buffer: encoded once, because its size bounds the buffer and its bytes go to disk."""

    sequence: int
    at: int
    priority: Priority
    data: bytes


def make_entry(sequence: int, reading: Reading) -> Entry:
    """Encode a reading under its sequence number."""
    return Entry(sequence=sequence, at=reading.at, priority=reading.priority, data=_encoder.encode(reading))


def entry_reading(entry: Entry) -> Reading:
    """The reading of an entry."""
    return _decoder.decode(entry.data)


def count_overflow(sizes: Mapping[Priority, int], *, limit: int) -> dict[Priority, int]:
    """How many bytes of each priority must go. A buffer over `limit` bytes makes room for a while, not for one reading only."""
    total = sum(sizes.values())
    excess = total - limit + limit // ROOM_SHARE if total > limit else 0
    drop: dict[Priority, int] = {}
    for priority in DROP_ORDER:
        if excess <= 0:
            break
        take = min(excess, sizes.get(priority, 0))
        if take > 0:
            drop[priority] = take
            excess -= take
    return drop


def oldest_allowed(now: int, *, max_age_ms: int) -> tuple[int, int]:
    """Readings made at or after the first and before the second time (ms) are too old; the pair is empty if the clock is not set."""
    if now < PLAUSIBLE_SINCE:
        return (0, 0)
    return (PLAUSIBLE_SINCE, max(PLAUSIBLE_SINCE, now - max_age_ms))


def cut_batch(entries: Iterable[Entry]) -> list[Entry]:
    """The longest prefix that one batch may hold."""
    taken: list[Entry] = []
    size = 0
    for entry in entries:
        size += len(entry.data)
        if taken and (len(taken) >= limits.MAX_READINGS_PER_BATCH or size > MAX_BATCH_BYTES):
            break
        taken.append(entry)
    return taken


def build_batch(epoch: str, entries: Sequence[Entry], lost: Mapping[Priority, int]) -> ReadingBatch:
    """The message for these entries, which are in the order of their sequence and at least one."""
    sequences = [entry.sequence for entry in entries]
    consecutive = sequences[-1] - sequences[0] == len(sequences) - 1
    return ReadingBatch(
        epoch=epoch,
        first=sequences[0],
        readings=[entry_reading(entry) for entry in entries],
        sequences=None if consecutive else sequences,
        lost={priority.name.lower(): count for priority, count in lost.items() if count},
    )


def encode_batch(epoch: str, entries: Sequence[Entry], lost: Mapping[Priority, int]) -> tuple[bytes, int]:
    """The payload and how many entries it holds: as many as fit, halving until they do.

    Raises PayloadTooLargeError if even one reading does not fit, which `fit_reading` makes impossible.
    """
    count = len(entries)
    while True:
        try:
            return encode(build_batch(epoch, entries[:count], lost)), count
        except PayloadTooLargeError:
            if count <= 1:
                raise
            count //= 2


def fit_reading(reading: Reading) -> Reading:
    """`reading` within the contract: a server would refuse the whole batch for one reading with too many or too long values."""
    values = {
        key[:64]: value[: limits.MAX_REASON_CHARS] if isinstance(value, str) else value
        for key, value in islice(reading.values.items(), limits.MAX_VALUES_PER_READING)
        if not (isinstance(value, float) and not isfinite(value))
    }
    return Reading(at=max(0, reading.at), kind=reading.kind, values=values, priority=reading.priority)
