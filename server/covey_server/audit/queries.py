"""Reading the audit record."""

from collections.abc import Sequence

from sqlmodel import Session, col, select

from covey_server.audit.models import AuditEvent


def list_events(
    session: Session,
    *,
    before: int | None = None,
    limit: int = 50,
    actor: str | None = None,
    action: str | None = None,
    subject: str | None = None,
) -> Sequence[AuditEvent]:
    """Who did what, newest first; `action` may be a whole capability, as `device`."""
    query = select(AuditEvent)
    if before is not None:
        query = query.where(col(AuditEvent.id) < before)
    if actor is not None:
        query = query.where(AuditEvent.actor == actor)
    if action is not None:
        query = query.where((col(AuditEvent.action) == action) | col(AuditEvent.action).startswith(f"{action}.", autoescape=True))
    if subject is not None:
        query = query.where(AuditEvent.subject == subject)
    return session.exec(query.order_by(col(AuditEvent.id).desc()).limit(limit)).all()
