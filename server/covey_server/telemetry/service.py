"""Readings: stored exactly once, acknowledged end to end, forgotten after a while. Questions about them are in `series.py`.

A device sends from its oldest unacknowledged reading and sends on only when that batch is acknowledged. So the end of a batch
is how far its stream is committed, for repeated and reordered batches too.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import msgspec
from sqlalchemy.dialects import postgresql
from sqlmodel import Session, col, delete

from covey_contract.codec import encode
from covey_contract.ids import DeviceId
from covey_contract.messages import Ack, ReadingBatch, Scalar
from covey_contract.topics import Channel, device_topic
from covey_server import outbox
from covey_server.telemetry.forks import find_forked
from covey_server.telemetry.models import ReadingRow, ReadingStream
from covey_server.telemetry.rules import merge_lost, reading_time, sequences_of

_KEY = ("device_id", "epoch", "sequence")
_COLUMNS = (*_KEY, "at", "received_at", "kind", "priority", "values")
_quoted = '"{}"'.format  # "values" is a word of SQL
_SQLITE_INSERT = (
    f"INSERT INTO readings ({', '.join(map(_quoted, _COLUMNS))}) VALUES ({', '.join('?' * len(_COLUMNS))}) "  # noqa: S608 - constants
    f"ON CONFLICT ({', '.join(_KEY)}) DO NOTHING"
)
_POSTGRES_INSERT = postgresql.insert(ReadingRow).on_conflict_do_nothing(index_elements=_KEY)
_encoder = msgspec.json.Encoder()


@dataclass(frozen=True, slots=True)
class Taken:
    """What became of a batch."""

    stored: int  # new readings
    forked: list[int] = field(default_factory=list)  # numbers that name another reading already; the device was told


def store_readings(session: Session, device: DeviceId, batch: ReadingBatch, *, now: datetime) -> Taken:
    """Store a batch, up to where it forks if it does, and queue its acknowledgement. Raises InvalidInputError."""
    numbers = sequences_of(batch)
    stream = session.get(ReadingStream, (device, batch.epoch)) or ReadingStream(device_id=device, epoch=batch.epoch)
    forked = find_forked(session, device, batch) if numbers[0] <= stream.upto else []
    good = bisect_left(numbers, forked[0]) if forked else len(numbers)
    upto = forked[0] - 1 if forked else numbers[-1]
    stored = _insert(session, device, batch, numbers[:good], now=now) if good else 0
    stream.upto = max(stream.upto, upto)
    stream.stored += stored
    stream.duplicates += good - stored
    stream.lost = merge_lost(stream.lost, batch.lost)
    stream.updated_at = now
    session.add(stream)
    ack = Ack(epoch=batch.epoch, upto=max(upto, 0), forked=bool(forked))
    outbox.publish_latest(session, device_topic(device, Channel.ACK), encode(ack))
    return Taken(stored, forked)


def prune_readings(session: Session, *, now: datetime, keep: timedelta) -> int:
    """Forget readings older than `keep`; how many went."""
    return session.exec(delete(ReadingRow).where(col(ReadingRow.at) < now - keep)).rowcount


def _insert(session: Session, device: DeviceId, batch: ReadingBatch, numbers: Sequence[int], *, now: datetime) -> int:
    readings = batch.readings[: len(numbers)]
    times = [reading_time(reading.at, received_at=now) for reading in readings]
    rows = zip(numbers, times, readings, strict=True)
    connection = session.connection()
    if connection.dialect.name == "sqlite":
        # Past SQLAlchemy's type processing, which would cost more than the insert itself: the hot path of the whole server.
        received_at = _sqlite_time(now)
        fast = [
            (device, batch.epoch, number, _sqlite_time(at), received_at, reading.kind, reading.priority.value, _json(reading.values))
            for number, at, reading in rows
        ]
        return connection.exec_driver_sql(_SQLITE_INSERT, fast).rowcount
    slow = [
        {
            "device_id": device,
            "epoch": batch.epoch,
            "sequence": number,
            "at": at,
            "received_at": now,
            "kind": reading.kind,
            "priority": reading.priority.value,
            "values": msgspec.json.decode(_json(reading.values)),  # not-a-number becomes null: PostgreSQL takes no NaN in JSON
        }
        for number, at, reading in rows
    ]
    return connection.execute(_POSTGRES_INSERT, slow).rowcount


def _sqlite_time(at: datetime) -> str:
    """As `UtcDateTime` stores it: naive UTC."""
    return at.astimezone(UTC).replace(tzinfo=None).isoformat(sep=" ", timespec="microseconds")


def _json(values: dict[str, Scalar]) -> str:
    return _encoder.encode(values).decode()
