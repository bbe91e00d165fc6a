"""Runs and the ledger.

Composing privacy takes a second or so, so a page comes without epsilon and then asks for that part alone.
"""

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from covey_server.api_deps import parts_of
from covey_server.console.page_route import PageRoute
from covey_server.console.params import Before, Text
from covey_server.console.queries.runs import accuracy_chart, get_run, list_runs
from covey_server.console.queries.spending import ledger_spending, list_events, run_spending
from covey_server.console.templating import newest_event, render, wanted_block
from covey_server.console.viewer import LoggedIn

router = APIRouter(route_class=PageRoute, include_in_schema=False)


@router.get("/runs")
def show_runs(request: Request, viewer: LoggedIn, after: str = "") -> Response:
    """Runs, newest first."""
    event = newest_event(request)
    with parts_of(request).db.read() as session:
        page = list_runs(session, after=after)
    return render(request, "runs.html", viewer=viewer, event=event, page=page, after=after)


@router.get("/runs/{run_id}")
def show_run(request: Request, viewer: LoggedIn, run_id: str) -> Response:
    """One run."""
    event = newest_event(request)
    with parts_of(request).db.read() as session:
        view = get_run(session, run_id)
        spendings = run_spending(session, run_id) if wanted_block(request) == "spending_live" else None
    return render(request, "run.html", viewer=viewer, event=event, view=view, spendings=spendings)


@router.get("/runs/{run_id}/charts")
def draw_run(request: Request, _viewer: LoggedIn, run_id: str) -> Response:
    """The charts of one run."""
    with parts_of(request).db.read() as session:
        view = get_run(session, run_id)
    return JSONResponse({"charts": {"accuracy": accuracy_chart(view)}})


@router.get("/ledger")
def show_ledger(request: Request, viewer: LoggedIn, before: Before = 0, device: Text = "") -> Response:
    """What every participant has spent, and each event that it was computed from."""
    event = newest_event(request)
    with parts_of(request).db.read() as session:
        spendings = ledger_spending(session) if wanted_block(request) == "accounts_live" else None
        page = list_events(session, before=before, device_id=device)
    return render(request, "ledger.html", viewer=viewer, event=event, spendings=spendings, page=page, device=device, before=before)
