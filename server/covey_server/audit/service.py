"""Recording who did what. Every service that changes something for somebody calls `record` in the same transaction."""

from typing import Any

from sqlmodel import Session

from covey_server.audit.models import AuditEvent


def record(session: Session, action: str, *, actor: str, subject: str = "", detail: dict[str, Any] | None = None) -> None:
    """Append one audit event; `detail` must hold no secret."""
    session.add(AuditEvent(actor=actor, action=action, subject=subject, detail=detail or {}))
