"""Counters shared between processes, and what is known of the fleet as numbers."""

from collections.abc import Mapping
from datetime import datetime, timedelta

from sqlalchemy import func
from sqlmodel import Session, col, delete, select

from covey_server.devices.models import Device
from covey_server.observability.models import Counter
from covey_server.outbox import OutboxMessage
from covey_server.releases.models import Release
from covey_server.rollouts.models import Rollout
from covey_server.telemetry.models import ReadingStream
from covey_server.triggers.models import Alert

HEARTBEAT = "heartbeat"
_FRESH = timedelta(seconds=15)


def store_counters(session: Session, process: str, counters: Mapping[tuple[str, str], float], *, now: datetime) -> None:
    """Replace all counters of one process, and beat its heart."""
    session.exec(delete(Counter).where(col(Counter.process) == process))
    for (name, label), value in {**counters, (HEARTBEAT, ""): now.timestamp()}.items():
        session.add(Counter(process=process, name=name, label=label, value=value, updated_at=now))


def is_alive(session: Session, process: str, *, now: datetime) -> bool:
    """Whether a process has stored its counters lately."""
    beat = session.get(Counter, (process, HEARTBEAT, ""))
    return beat is not None and now - beat.updated_at < _FRESH


def counters(session: Session) -> list[Counter]:
    """Every counter but the heartbeats."""
    return list(session.exec(select(Counter).where(col(Counter.name) != HEARTBEAT)))


def gauges(session: Session) -> dict[str, dict[str, float]]:
    """The fleet in numbers: gauge name -> label -> value."""
    streams = session.exec(select(func.sum(ReadingStream.stored), func.sum(ReadingStream.duplicates))).one()
    return {
        "covey_devices": _count_by(session, Device.presence),
        "covey_rollouts": _count_by(session, Rollout.state),
        "covey_releases": _count_by(session, Release.state),
        "covey_alerts_open": {"": float(session.exec(select(func.count()).where(col(Alert.acknowledged_at).is_(None))).one())},
        "covey_outbox_unsent": {"": float(session.exec(select(func.count()).where(col(OutboxMessage.sent_at).is_(None))).one())},
        "covey_readings_stored": {"": float(streams[0] or 0)},
        "covey_readings_duplicate": {"": float(streams[1] or 0)},
    }


def _count_by(session: Session, column: object) -> dict[str, float]:
    rows = session.exec(select(column, func.count()).group_by(column))  # type: ignore[call-overload]  # a mapped column, typed as its value
    return {str(getattr(value, "value", value)): float(count) for value, count in rows}
