"""The API's reference as a page of our own: it works offline and under the same security policy as every other page."""

from fastapi import APIRouter, Request, Response

from covey_server.console.page_route import PageRoute
from covey_server.console.queries.reference import read_reference
from covey_server.console.templating import newest_event, render
from covey_server.console.viewer import LoggedIn

router = APIRouter(route_class=PageRoute, include_in_schema=False)


@router.get("/docs")
def show_reference(request: Request, viewer: LoggedIn) -> Response:
    """Every call of the API."""
    document = request.app.openapi()
    event = newest_event(request)
    return render(request, "reference.html", viewer=viewer, event=event, subjects=read_reference(document), info=document["info"])
