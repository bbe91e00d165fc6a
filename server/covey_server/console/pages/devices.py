"""The devices page, one device's page and its charts."""

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse, RedirectResponse

from covey_server.api_deps import parts_of
from covey_server.console.formats import iso
from covey_server.console.page_route import PageRoute
from covey_server.console.params import Text
from covey_server.console.queries.device import get_device
from covey_server.console.queries.devices import DeviceFilter, list_devices, list_open_invitations
from covey_server.console.queries.readings import RANGES, get_device_charts
from covey_server.console.templating import newest_event, render
from covey_server.console.viewer import LoggedIn, OperatorForm
from covey_server.rollouts.service import release_quarantine

router = APIRouter(route_class=PageRoute, include_in_schema=False)


@router.get("/devices")
def show_devices(
    request: Request,
    viewer: LoggedIn,
    q: Text = "",
    presence: Text = "",
    state: Text = "",
    profile: Text = "",
    serving: Text = "",
    after: Text = "",
) -> Response:
    """Devices that pass a filter."""
    wanted = DeviceFilter(q=q.strip(), presence=presence, state=state, profile=profile, serving=serving)
    event = newest_event(request)
    parts = parts_of(request)
    with parts.db.read() as session:
        page = list_devices(session, wanted, after=after)
        invitations = list_open_invitations(session, now=parts.clock())
    return render(request, "devices.html", viewer=viewer, event=event, page=page, wanted=wanted, invitations=invitations, after=after)


@router.get("/devices/{device_id}")
def show_device(request: Request, viewer: LoggedIn, device_id: str, range: Text = "1h") -> Response:  # noqa: A002 - the name in the address
    """One device."""
    event = newest_event(request)
    with parts_of(request).db.read() as session:
        view = get_device(session, device_id)
    chosen = range if range in RANGES else "1h"
    return render(request, "device.html", viewer=viewer, event=event, view=view, range=chosen, ranges=list(RANGES))


@router.get("/devices/{device_id}/charts")
def draw_device(request: Request, _viewer: LoggedIn, device_id: str, range: Text = "1h") -> Response:  # noqa: A002 - the name in the address
    """The charts of one device."""
    with parts_of(request).db.read() as session:
        told = get_device_charts(session, device_id, window=RANGES.get(range, RANGES["1h"]))
    return JSONResponse({"charts": told.charts, "newest_at": iso(told.newest_at)})


@router.post("/devices/{device_id}/quarantine/{digest}/release")
def release(request: Request, viewer: OperatorForm, device_id: str, digest: str) -> Response:
    """Let the device try this digest again."""
    parts = parts_of(request)
    with parts.db.begin() as session:
        release_quarantine(session, device_id, [digest], director=parts.director, actor=viewer.actor, now=parts.clock())
    return RedirectResponse(f"/devices/{device_id}", status_code=303)
