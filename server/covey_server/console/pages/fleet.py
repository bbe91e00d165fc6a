"""The overview, alerts and the audit record."""

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse

from covey_server.api_deps import parts_of
from covey_server.console.page_route import PageRoute
from covey_server.console.params import Before, RowId, Text
from covey_server.console.queries.activity import list_alerts, list_audit
from covey_server.console.queries.fleet import get_fleet
from covey_server.console.templating import newest_event, render
from covey_server.console.viewer import LoggedIn, OperatorForm
from covey_server.triggers.service import acknowledge_alert

router = APIRouter(route_class=PageRoute, include_in_schema=False)


@router.get("/")
def show_overview(request: Request, viewer: LoggedIn) -> Response:
    """The whole fleet on one page."""
    event = newest_event(request)
    with parts_of(request).db.read() as session:
        fleet = get_fleet(session)
    return render(request, "overview.html", viewer=viewer, event=event, view=fleet)


@router.get("/alerts")
def show_alerts(request: Request, viewer: LoggedIn, before: Before = 0, show: str = "") -> Response:
    """Alerts; `show=open` leaves out those that were acknowledged."""
    event = newest_event(request)
    with parts_of(request).db.read() as session:
        page = list_alerts(session, before=before, only_open=show == "open")
    return render(request, "alerts.html", viewer=viewer, event=event, page=page, show=show, before=before)


@router.post("/alerts/{alert_id}/acknowledge")
def acknowledge(request: Request, viewer: OperatorForm, alert_id: RowId) -> Response:
    """Note that somebody has seen it."""
    parts = parts_of(request)
    with parts.db.begin() as session:
        acknowledge_alert(session, alert_id, actor=viewer.actor, now=parts.clock())
    return RedirectResponse("/alerts", status_code=303)


@router.get("/audit")
def show_audit(request: Request, viewer: LoggedIn, before: Before = 0, action: Text = "", actor: Text = "") -> Response:
    """Who did what."""
    event = newest_event(request)
    with parts_of(request).db.read() as session:
        page = list_audit(session, before=before, action=action.strip(), actor=actor.strip())
    return render(request, "audit.html", viewer=viewer, event=event, page=page, action=action, actor=actor, before=before)
