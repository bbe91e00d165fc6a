"""Alerts: raised by rules and devices, acknowledged by people. The same alert stays one until somebody has acknowledged it."""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import func
from sqlmodel import Session, col, select

from covey_server import outbox
from covey_server.audit import service as audit
from covey_server.errors import NotFoundError
from covey_server.triggers.models import Alert, Severity

_MAX_WHAT = 64
_MAX_DETAIL = 1000


def raise_alert(
    session: Session,
    what: str,
    *,
    now: datetime,
    detail: str = "",
    severity: Severity = Severity.WARNING,
    device: str | None = None,
    subject: str = "",
) -> Alert:
    """Tell operators something. An open alert about the same is renewed instead of adding another."""
    what, detail = what[:_MAX_WHAT], detail[:_MAX_DETAIL]
    query = select(Alert).where(Alert.what == what, Alert.subject == subject, col(Alert.acknowledged_at).is_(None))
    query = query.where(col(Alert.device_id).is_(None) if device is None else Alert.device_id == device)
    alert = session.exec(query).first() or Alert(what=what, device_id=device, subject=subject)
    is_news = alert.id is None or (alert.detail, alert.severity) != (detail, severity)
    alert.at, alert.detail, alert.severity = now, detail, severity
    session.add(alert)
    session.flush()
    if is_news:
        _emit(session, alert)
    return alert


def acknowledge_alert(session: Session, alert_id: int, *, actor: str, now: datetime) -> Alert:
    """Somebody has seen it; again is no error."""
    alert = session.get(Alert, alert_id)
    if alert is None:
        raise NotFoundError("alert", alert_id)
    if alert.acknowledged_at is None:
        alert.acknowledged_at, alert.acknowledged_by = now, actor
        session.add(alert)
        audit.record(session, "alert.acknowledged", actor=actor, subject=str(alert.id), detail={"what": alert.what})
        _emit(session, alert)
    return alert


def list_alerts(
    session: Session, *, before: int | None = None, limit: int = 50, only_open: bool = False, device: str | None = None
) -> Sequence[Alert]:
    """Alerts, newest first."""
    query = select(Alert)
    if before is not None:
        query = query.where(col(Alert.id) < before)
    if only_open:
        query = query.where(col(Alert.acknowledged_at).is_(None))
    if device is not None:
        query = query.where(Alert.device_id == device)
    return session.exec(query.order_by(col(Alert.id).desc()).limit(limit)).all()


def count_open_alerts(session: Session) -> dict[Severity, int]:
    """How many alerts wait for somebody, by severity."""
    query = select(Alert.severity, func.count()).where(col(Alert.acknowledged_at).is_(None)).group_by(col(Alert.severity))
    found = dict(session.exec(query).all())
    return {severity: found.get(severity, 0) for severity in Severity}


def _emit(session: Session, alert: Alert) -> None:
    data = {
        "id": alert.id,
        "what": alert.what,
        "severity": alert.severity.value,
        "device": alert.device_id,
        "open": alert.acknowledged_at is None,
    }
    outbox.emit(session, "alert.changed", data)
