"""The overview, alerts and the audit record."""

from fastapi import APIRouter, Request, Response

from covey_server.api_deps import parts_of
from covey_server.console.page_route import PageRoute
from covey_server.console.queries.activity import list_alerts, list_audit
from covey_server.console.queries.fleet import get_fleet
from covey_server.console.templating import newest_event, render
from covey_server.console.viewer import LoggedIn

router = APIRouter(route_class=PageRoute, include_in_schema=False)


@router.get("/")
def show_overview(request: Request, viewer: LoggedIn) -> Response:
    """The whole fleet on one page."""
    event = newest_event(request)
    with parts_of(request).db.read() as session:
        fleet = get_fleet(session)
    return render(request, "overview.html", viewer=viewer, event=event, view=fleet)


@router.get("/alerts")
def show_alerts(request: Request, viewer: LoggedIn, before: int = 0, show: str = "") -> Response:
    """Alerts; `show=open` leaves out those that were acknowledged."""
    event = newest_event(request)
    with parts_of(request).db.read() as session:
        page = list_alerts(session, before=before, only_open=show == "open")
    return render(request, "alerts.html", viewer=viewer, event=event, page=page, show=show, before=before)


@router.get("/audit")
def show_audit(request: Request, viewer: LoggedIn, before: int = 0, action: str = "", actor: str = "") -> Response:
    """Who did what."""
    event = newest_event(request)
    with parts_of(request).db.read() as session:
        page = list_audit(session, before=before, action=action.strip(), actor=actor.strip())
    return render(request, "audit.html", viewer=viewer, event=event, page=page, action=action, actor=actor, before=before)
