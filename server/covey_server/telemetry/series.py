"""Questions about readings: a value over time, the latest values of a device, the fleet in numbers.

The database does the arithmetic, because a month of one device's readings is too many rows to bring here. Values that are not
numbers count as absent.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Float, Integer, String, cast, func, type_coerce
from sqlalchemy import select as select_rows  # SQLModel's own takes four columns
from sqlalchemy.sql.elements import ColumnElement
from sqlmodel import Session, col, select

from covey_server.errors import InvalidInputError
from covey_server.telemetry.models import ReadingRow, ReadingStream
from covey_server.telemetry.rules import check_value_name

MAX_BUCKETS = 1000


@dataclass(frozen=True, slots=True)
class Point:
    """One bucket of a series that holds readings."""

    at: datetime  # the bucket's begin
    average: float
    minimum: float
    maximum: float
    count: int


@dataclass(frozen=True, slots=True)
class Latest:
    """The newest reading of one kind."""

    kind: str
    at: datetime
    values: dict[str, Any]


@dataclass(frozen=True, slots=True)
class FleetSummary:
    """All devices' readings in numbers."""

    stored: int  # since the beginning
    duplicates: int  # came again, stored once
    lost: dict[str, int]  # dropped by devices whose buffer was full, by priority
    streams: int  # epochs of devices
    by_kind: dict[str, int]  # readings within the window
    requests: float  # inferences within the window
    errors: float
    p50_ms: float | None  # mean over the window
    p95_ms: float | None  # worst within the window


def read_series(
    session: Session, device: str, kind: str, value: str, *, since: datetime, until: datetime, buckets: int = 200
) -> list[Point]:
    """One value of one device in [since, until), in up to `buckets` equal parts; parts without readings are left out."""
    _check_window(since, until)
    if not 1 <= buckets <= MAX_BUCKETS:
        raise InvalidInputError(f"buckets must be 1 to {MAX_BUCKETS}, got {buckets}")
    width_s = (until - since).total_seconds() / buckets
    number = _number(session, value)
    bucket = _bucket(session, since, width_s)
    query = (
        select_rows(bucket.label("bucket"), func.avg(number), func.min(number), func.max(number), func.count())
        .where(col(ReadingRow.device_id) == device, col(ReadingRow.kind) == kind)
        .where(col(ReadingRow.at) >= since, col(ReadingRow.at) < until, _is_number(session, value))
        .group_by("bucket")
        .order_by("bucket")
    )
    return [
        Point(since + timedelta(seconds=width_s * min(int(index), buckets - 1)), float(mean), float(low), float(high), count)
        for index, mean, low, high, count in session.execute(query)
    ]


def latest_values(session: Session, device: str) -> list[Latest]:
    """The newest reading of each kind that a device has sent."""
    kinds = session.exec(select(ReadingRow.kind).where(ReadingRow.device_id == device).distinct().order_by(ReadingRow.kind)).all()
    found: list[Latest] = []
    for kind in kinds:
        query = select(ReadingRow).where(ReadingRow.device_id == device, ReadingRow.kind == kind)
        row = session.exec(query.order_by(col(ReadingRow.at).desc(), col(ReadingRow.id).desc()).limit(1)).one()
        found.append(Latest(row.kind, row.at, row.values))
    return found


def list_readings(
    session: Session, device: str, *, kind: str | None = None, before: int | None = None, limit: int = 50
) -> Sequence[ReadingRow]:
    """Readings of a device as they arrived, newest first."""
    query = select(ReadingRow).where(ReadingRow.device_id == device)
    if kind is not None:
        query = query.where(ReadingRow.kind == kind)
    if before is not None:
        query = query.where(col(ReadingRow.id) < before)
    return session.exec(query.order_by(col(ReadingRow.id).desc()).limit(limit)).all()


def list_streams(session: Session, device: str) -> Sequence[ReadingStream]:
    """How far each epoch of a device's readings is committed, newest first."""
    return session.exec(select(ReadingStream).where(ReadingStream.device_id == device).order_by(col(ReadingStream.updated_at).desc())).all()


def summarize_fleet(session: Session, *, since: datetime, until: datetime) -> FleetSummary:
    """The fleet's readings: counts since the beginning, inference within the window."""
    _check_window(since, until)
    totals = session.execute(select(func.sum(ReadingStream.stored), func.sum(ReadingStream.duplicates), func.count())).one()
    lost: dict[str, int] = {}
    for counts in session.exec(select(ReadingStream.lost).where(func.length(cast(col(ReadingStream.lost), String)) > len("{}"))):
        for priority, count in counts.items():
            lost[priority] = lost.get(priority, 0) + count
    window = (col(ReadingRow.at) >= since, col(ReadingRow.at) < until)
    by_kind = dict(session.exec(select(ReadingRow.kind, func.count()).where(*window).group_by(ReadingRow.kind)).all())
    requests, errors = (_total(session, name, *window) for name in ("requests", "errors"))
    p50 = session.execute(
        select(func.avg(_number(session, "p50_ms"))).where(ReadingRow.kind == "infer", *window, _is_number(session, "p50_ms"))
    ).scalar()
    p95 = session.execute(
        select(func.max(_number(session, "p95_ms"))).where(ReadingRow.kind == "infer", *window, _is_number(session, "p95_ms"))
    ).scalar()
    return FleetSummary(
        stored=int(totals[0] or 0),
        duplicates=int(totals[1] or 0),
        lost=lost,
        streams=int(totals[2]),
        by_kind=by_kind,
        requests=requests,
        errors=errors,
        p50_ms=p50,
        p95_ms=p95,
    )


def _total(session: Session, name: str, *window: ColumnElement[bool]) -> float:
    query = select(func.sum(_number(session, name))).where(ReadingRow.kind == "infer", *window, _is_number(session, name))
    return float(session.execute(query).scalar() or 0.0)


def _check_window(since: datetime, until: datetime) -> None:
    for moment in (since, until):
        if moment.tzinfo is None:
            raise InvalidInputError(f"times must carry their zone (2026-01-31T12:00:00Z), got {moment.isoformat()}")
    if not since < until:
        raise InvalidInputError(f"the window must begin before it ends, got {since.isoformat()} to {until.isoformat()}")


def _number(session: Session, name: str) -> ColumnElement[float]:
    values = col(ReadingRow.values)
    if _is_sqlite(session):
        return type_coerce(func.json_extract(values, _path(name)), Float)
    return cast(func.json_extract_path_text(values, check_value_name(name)), Float)


def _is_number(session: Session, name: str) -> ColumnElement[bool]:
    values = col(ReadingRow.values)
    if _is_sqlite(session):
        return func.json_type(values, _path(name)).in_(["integer", "real"])
    return func.json_typeof(func.json_extract_path(values, check_value_name(name))) == "number"


def _bucket(session: Session, since: datetime, width_s: float) -> ColumnElement[int]:
    at = col(ReadingRow.at)
    if _is_sqlite(session):
        seconds = (func.julianday(at) - func.julianday(since.astimezone(UTC).replace(tzinfo=None).isoformat(sep=" "))) * 86_400.0
        # Julian days hold about 0.1 ms; without the half millisecond a reading at a bucket's very begin could fall before it.
        return cast((seconds + 0.0005) / width_s, Integer)
    return cast(func.floor(func.extract("epoch", at - since) / width_s), Integer)


def _is_sqlite(session: Session) -> bool:
    return session.get_bind().dialect.name == "sqlite"


def _path(name: str) -> str:
    return f'$."{check_value_name(name)}"'
