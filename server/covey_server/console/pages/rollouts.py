"""Rollouts, and the buttons that start, pause, resume and cancel one."""

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse

from covey_server.api_deps import parts_of
from covey_server.console.page_route import PageRoute
from covey_server.console.queries.rollouts import get_rollout, list_rollouts
from covey_server.console.templating import newest_event, render
from covey_server.console.viewer import LoggedIn, OperatorForm
from covey_server.rollouts import service

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


@router.post("/rollouts/{rollout_id}/start")
def start(request: Request, viewer: OperatorForm, rollout_id: str) -> Response:
    """Tell the devices of the first phase."""
    parts = parts_of(request)
    with parts.db.begin() as session:
        service.start_rollout(session, rollout_id, director=parts.director, actor=viewer.actor, now=parts.clock())
    return _back(rollout_id)


@router.post("/rollouts/{rollout_id}/pause")
def pause(request: Request, viewer: OperatorForm, rollout_id: str) -> Response:
    """Tell no further device."""
    with parts_of(request).db.begin() as session:
        service.pause_rollout(session, rollout_id, actor=viewer.actor)
    return _back(rollout_id)


@router.post("/rollouts/{rollout_id}/resume")
def resume(request: Request, viewer: OperatorForm, rollout_id: str) -> Response:
    """Go on after a pause."""
    with parts_of(request).db.begin() as session:
        service.resume_rollout(session, rollout_id, actor=viewer.actor)
    return _back(rollout_id)


@router.post("/rollouts/{rollout_id}/cancel")
def cancel(request: Request, viewer: OperatorForm, rollout_id: str) -> Response:
    """End it for good."""
    parts = parts_of(request)
    with parts.db.begin() as session:
        service.cancel_rollout(session, rollout_id, director=parts.director, actor=viewer.actor, now=parts.clock())
    return _back(rollout_id)


def _back(rollout_id: str) -> Response:
    return RedirectResponse(f"/rollouts/{rollout_id}", status_code=303)
