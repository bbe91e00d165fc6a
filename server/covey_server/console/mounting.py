"""How the console joins an app: its files and its pages."""

from fastapi import APIRouter, FastAPI

from covey_server.console import assets, live
from covey_server.console.page_route import PageRoute
from covey_server.console.pages import devices, fleet, logins, reference, releases, rollouts, runs

router = APIRouter(include_in_schema=False)
for _part in (logins, live, fleet, devices, releases, rollouts, runs, reference):
    router.include_router(_part.router)


def mount(app: FastAPI) -> None:
    """Serve the console's files; the app needs `app.state.parts` before the first request. Include `router` besides."""
    files = APIRouter(route_class=PageRoute, include_in_schema=False)
    files.add_api_route(assets.PREFIX + "{name:path}", assets.serve_asset, methods=["GET", "HEAD"])
    app.include_router(files)
