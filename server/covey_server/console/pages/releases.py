"""Releases."""

from fastapi import APIRouter, Request, Response

from covey_server.api_deps import parts_of
from covey_server.console.page_route import PageRoute
from covey_server.console.params import Before, RowId
from covey_server.console.queries.releases import get_release, list_releases
from covey_server.console.templating import newest_event, render
from covey_server.console.viewer import LoggedIn

router = APIRouter(route_class=PageRoute, include_in_schema=False)


@router.get("/releases")
def show_releases(request: Request, viewer: LoggedIn, before: Before = 0) -> Response:
    """Releases, newest first."""
    event = newest_event(request)
    with parts_of(request).db.read() as session:
        page = list_releases(session, before=before)
    return render(request, "releases.html", viewer=viewer, event=event, page=page, before=before)


@router.get("/releases/{release_id}")
def show_release(request: Request, viewer: LoggedIn, release_id: RowId) -> Response:
    """One release."""
    event = newest_event(request)
    with parts_of(request).db.read() as session:
        view = get_release(session, release_id)
    return render(request, "release.html", viewer=viewer, event=event, view=view)
