"""REST: alerts."""

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Path, Query

from covey_server.access.guard import Operator, Viewer
from covey_server.api_deps import ApiView, Page, PageQuery, PartsDep, ReadSession, WriteSession, problems
from covey_server.triggers import service
from covey_server.triggers.models import Severity

router = APIRouter(prefix="/api/v1", tags=["alerts"])


class AlertView(ApiView):
    """Something that an operator should know."""

    id: int
    at: datetime
    severity: Severity
    what: str
    detail: str
    device_id: str | None
    subject: str
    acknowledged_at: datetime | None
    acknowledged_by: str


@router.get("/alerts", summary="List alerts", responses=problems(422))
def list_alerts(
    _: Viewer,
    session: ReadSession,
    page: PageQuery,
    only_open: Annotated[bool, Query(alias="open", description="only those that nobody has acknowledged")] = False,
    device: Annotated[str | None, Query(max_length=64)] = None,
) -> Page[AlertView]:
    """Alerts, newest first."""
    rows = service.list_alerts(session, before=page.before_id(), limit=page.limit + 1, only_open=only_open, device=device)
    return Page[AlertView].cut([AlertView.model_validate(row) for row in rows], page, key=lambda view: (view.id,))


@router.post("/alerts/{alert}/acknowledge", summary="Acknowledge an alert", responses=problems(404))
def acknowledge_alert(alert: Annotated[int, Path(ge=1, lt=2**62)], actor: Operator, session: WriteSession, parts: PartsDep) -> AlertView:
    """Say that somebody has seen it. Again is no error, so no idempotency key is needed."""
    return AlertView.model_validate(service.acknowledge_alert(session, alert, actor=actor.name, now=parts.clock()))
