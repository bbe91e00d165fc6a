"""Readings whose number was used twice: two streams that were one. Repetitions of the same reading are no fork."""

from sqlmodel import Session, col, select

from covey_contract.messages import ReadingBatch
from covey_server.telemetry.models import ReadingRow
from covey_server.telemetry.rules import reading_time, sequences_of


def find_forked(session: Session, device: str, batch: ReadingBatch) -> list[int]:
    """The numbers of this batch under which another reading is stored already."""
    told = dict(zip(sequences_of(batch), batch.readings, strict=True))
    query = select(ReadingRow.sequence, ReadingRow.at, ReadingRow.received_at, ReadingRow.kind).where(
        ReadingRow.device_id == device, ReadingRow.epoch == batch.epoch, col(ReadingRow.sequence).in_(list(told))
    )
    return sorted(
        sequence
        for sequence, at, received_at, kind in session.exec(query)
        if kind != told[sequence].kind or at != reading_time(told[sequence].at, received_at=received_at)
    )
