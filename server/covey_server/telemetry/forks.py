"""Readings whose number was used twice: two streams that were one. Repetitions of the same reading are no fork.

A device whose state is restored from a copy (an image of its card, a backup) counts on from an old number. What it still held from then
was committed long ago and is the same; from the first new reading on, its numbers name others. So a batch is good up to there.
"""

import msgspec
from sqlmodel import Session, col, select

from covey_contract.messages import Reading, ReadingBatch
from covey_server.telemetry.models import ReadingRow
from covey_server.telemetry.rules import reading_time, sequences_of


def find_forked(session: Session, device: str, batch: ReadingBatch) -> list[int]:
    """The numbers of this batch under which another reading is stored already, ascending."""
    told = dict(zip(sequences_of(batch), batch.readings, strict=True))
    query = select(ReadingRow).where(
        ReadingRow.device_id == device, ReadingRow.epoch == batch.epoch, col(ReadingRow.sequence).in_(list(told))
    )
    return sorted(row.sequence for row in session.exec(query) if not _is_same(row, told[row.sequence]))


def _is_same(row: ReadingRow, told: Reading) -> bool:
    values = msgspec.json.decode(msgspec.json.encode(told.values))  # as stored: not-a-number is null
    return row.kind == told.kind and row.at == reading_time(told.at, received_at=row.received_at) and row.values == values
