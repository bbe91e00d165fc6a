"""REST: the audit record, for reading only."""

from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Query

from covey_server.access.guard import Operator
from covey_server.api_deps import ApiView, Page, PageQuery, ReadSession, problems
from covey_server.audit.queries import list_events

router = APIRouter(prefix="/api/v1", tags=["audit"])
_Filter = Annotated[str | None, Query(max_length=200)]


class AuditEventView(ApiView):
    """One act."""

    id: int
    at: datetime
    actor: str
    action: str
    subject: str
    detail: dict[str, Any]


@router.get("/audit", summary="Who did what", responses=problems(422))
def list_audit(
    _: Operator,
    session: ReadSession,
    page: PageQuery,
    actor: _Filter = None,
    action: Annotated[
        str | None, Query(max_length=200, description="one action, as device.invited, or all of a capability, as device")
    ] = None,
    subject: _Filter = None,
) -> Page[AuditEventView]:
    """Acts of users, tokens, devices and the server itself, newest first."""
    rows = list_events(session, before=page.before_id(), limit=page.limit + 1, actor=actor, action=action, subject=subject)
    return Page[AuditEventView].cut([AuditEventView.model_validate(row) for row in rows], page, key=lambda view: (view.id,))
