"""Rollouts, and the buttons that pause, resume and cancel one."""

from fastapi import APIRouter, Request, Response

from covey_server.api_deps import parts_of
from covey_server.console.page_route import PageRoute
from covey_server.console.queries.rollouts import get_rollout, list_rollouts
from covey_server.console.templating import newest_event, render
from covey_server.console.viewer import LoggedIn

router = APIRouter(route_class=PageRoute, include_in_schema=False)


@router.get("/rollouts")
def show_rollouts(request: Request, viewer: LoggedIn, after: str = "") -> Response:
    """Rollouts, newest first."""
    event = newest_event(request)
    with parts_of(request).db.read() as session:
        page = list_rollouts(session, after=after)
    return render(request, "rollouts.html", viewer=viewer, event=event, page=page, after=after)


@router.get("/rollouts/{rollout_id}")
def show_rollout(request: Request, viewer: LoggedIn, rollout_id: str) -> Response:
    """One rollout."""
    event = newest_event(request)
    with parts_of(request).db.read() as session:
        view = get_rollout(session, rollout_id)
    return render(request, "rollout.html", viewer=viewer, event=event, view=view)
