"""Rules of readings: which sequence numbers a batch holds, and when a reading was made. Pure."""

import re
from collections.abc import Mapping
from datetime import datetime, timedelta
from itertools import pairwise

from covey_contract.messages import Priority, ReadingBatch
from covey_server.clock import from_millis
from covey_server.errors import InvalidInputError

MAX_SEQUENCE = 2**53  # what every language and database on the way can hold exactly
_AHEAD = timedelta(days=1)
_PRIORITIES = frozenset(priority.name.lower() for priority in Priority)
_VALUE_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


def sequences_of(batch: ReadingBatch) -> range | list[int]:
    """The sequence number of each reading, ascending. Raises InvalidInputError if the batch contradicts itself."""
    if not batch.readings:
        raise InvalidInputError("a batch must hold at least one reading")
    numbers = batch.sequences if batch.sequences is not None else range(batch.first, batch.first + len(batch.readings))
    if len(numbers) != len(batch.readings):
        raise InvalidInputError(f"{len(batch.readings)} readings came with {len(numbers)} sequence numbers")
    if numbers[0] != batch.first or numbers[-1] > MAX_SEQUENCE:
        raise InvalidInputError(f"sequence numbers must begin at {batch.first} and stay below {MAX_SEQUENCE}")
    if isinstance(numbers, list) and any(late <= early for early, late in pairwise(numbers)):
        raise InvalidInputError("sequence numbers must ascend")
    return numbers


def merge_lost(known: Mapping[str, int], told: Mapping[str, int]) -> dict[str, int]:
    """Counts of readings lost on the device, by priority. They only grow, so a batch that is repeated takes nothing back."""
    lost = {name.lower(): count for name, count in told.items() if name.lower() in _PRIORITIES}
    return {name: max(known.get(name, 0), lost.get(name, 0)) for name in {**known, **lost}}


def reading_time(millis: int, *, received_at: datetime) -> datetime:
    """When a reading was made; the time of its arrival when the device's clock is far ahead, so that it cannot stay newest for ever."""
    try:
        at = from_millis(millis)
    except (OverflowError, ValueError, OSError):
        return received_at
    return at if at <= received_at + _AHEAD else received_at


def check_value_name(name: str) -> str:
    """A value's name as it may stand in a query. Raises InvalidInputError."""
    if _VALUE_NAME.fullmatch(name) is None:
        raise InvalidInputError(f"a value's name must match {_VALUE_NAME.pattern}, got {name!r:.80}")
    return name
