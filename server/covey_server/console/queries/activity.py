"""Alerts and the audit record, newest first."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import func
from sqlmodel import Session, col, select

from covey_server.audit.models import AuditEvent
from covey_server.triggers.models import Alert

PAGE_SIZE = 50


@dataclass(frozen=True, slots=True)
class AlertView:
    """One alert."""

    id: int
    at: datetime
    severity: str
    what: str
    detail: str
    device_id: str | None
    subject: str
    link: str  # the page that it is about, "" if none
    acknowledged_at: datetime | None
    acknowledged_by: str


@dataclass(frozen=True, slots=True)
class AlertPage:
    """One page of alerts."""

    lines: tuple[AlertView, ...]
    open: int
    next: int  # id behind which the next page begins, 0 at the end


@dataclass(frozen=True, slots=True)
class AuditView:
    """One act."""

    id: int
    at: datetime
    actor: str
    action: str
    subject: str
    detail: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class AuditPage:
    """One page of acts."""

    lines: tuple[AuditView, ...]
    next: int


def list_alerts(session: Session, *, before: int = 0, only_open: bool = False, limit: int = PAGE_SIZE) -> AlertPage:
    """Alerts; open ones only if wanted."""
    query = select(Alert).order_by(col(Alert.id).desc()).limit(limit + 1)
    if only_open:
        query = query.where(col(Alert.acknowledged_at).is_(None))
    rows = session.exec(query.where(col(Alert.id) < before) if before else query).all()
    lines = tuple(_alert(row) for row in rows[:limit])
    return AlertPage(lines, count_open_alerts(session), lines[-1].id if len(rows) > limit else 0)


def count_open_alerts(session: Session) -> int:
    """How many alerts nobody has acknowledged."""
    return session.exec(select(func.count()).select_from(Alert).where(col(Alert.acknowledged_at).is_(None))).one()


def list_audit(session: Session, *, before: int = 0, action: str = "", actor: str = "", limit: int = PAGE_SIZE) -> AuditPage:
    """Acts, narrowed to actions that begin with `action` and actors that contain `actor`."""
    query = select(AuditEvent).order_by(col(AuditEvent.id).desc()).limit(limit + 1)
    if action:
        query = query.where(col(AuditEvent.action).startswith(action, autoescape=True))
    if actor:
        query = query.where(col(AuditEvent.actor).contains(actor, autoescape=True))
    rows = session.exec(query.where(col(AuditEvent.id) < before) if before else query).all()
    lines = tuple(_act(row) for row in rows[:limit])
    return AuditPage(lines, lines[-1].id if len(rows) > limit else 0)


def _alert(row: Alert) -> AlertView:
    return AlertView(
        id=row.id or 0,
        at=row.at,
        severity=row.severity.value,
        what=row.what,
        detail=row.detail,
        device_id=row.device_id,
        subject=row.subject,
        link=_link(row.what, row.subject),
        acknowledged_at=row.acknowledged_at,
        acknowledged_by=row.acknowledged_by,
    )


def _link(what: str, subject: str) -> str:
    for kind in ("rollout", "run", "release"):
        if subject and what.startswith(f"{kind}_"):
            return f"/{kind}s/{subject}"
    return ""


def _act(row: AuditEvent) -> AuditView:
    return AuditView(
        row.id or 0, row.at, row.actor, row.action, row.subject, tuple((key, _text(value)) for key, value in row.detail.items())
    )


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
