"""Turning view models into HTML: one Jinja2 environment with autoescape, the filters of formats.py, and pages by block.

A page and its live parts are one template: a request by htmx names the element that it will fill (HX-Target), and if the
template has a block of that name, only this block is rendered. So a fragment can never differ from the page that holds it.
"""

from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

from fastapi import Request
from fastapi.responses import HTMLResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup

from covey_server.api_deps import parts_of
from covey_server.console import formats
from covey_server.console.assets import asset_url
from covey_server.console.pills import pill_of
from covey_server.console.viewer import Viewer
from covey_server.outbox import newest_event_id

_TEMPLATES = Path(__file__).parent / "templates"
_FILTERS = ("utc", "iso", "duration", "size", "percent", "points", "number", "epsilon", "delta", "short", "words", "plural")


@cache
def environment() -> Environment:
    """The console's Jinja2 environment."""
    env = Environment(loader=FileSystemLoader(_TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    env.filters.update({name: getattr(formats, name) for name in _FILTERS})
    env.globals.update(asset=asset_url, pill_of=pill_of)
    env.globals["ui"] = env.get_template("ui.html").module  # a global, because a block rendered alone sees no imports of its template
    return env


def render(request: Request, template: str, *, viewer: Viewer, status: int = 200, **values: Any) -> HTMLResponse:
    """A page, or the one block of it that htmx asks for."""
    page = environment().get_template(template)
    parts = parts_of(request)
    context = {
        "viewer": viewer,
        "path": request.url.path,
        "address": request.url.path + (f"?{request.url.query}" if request.url.query else ""),
        "fleet": parts.settings.fleet_name,
        **_time_context(parts.clock()),
        **values,
    }
    block = wanted_block(request)
    if block in page.blocks:
        return HTMLResponse(_render_block(page, block, context), status_code=status)
    return HTMLResponse(page.render(context), status_code=status)


def wanted_block(request: Request) -> str:
    """The live part of a page that htmx asks for, "" for the whole page."""
    target = request.headers.get("HX-Target", "") if "HX-Request" in request.headers else ""
    return target if target.endswith("_live") else ""


def newest_event(request: Request) -> int:
    """The newest live event. Read it before a page's data: what comes after it is then told to the page, never lost."""
    with parts_of(request).db.read() as session:
        return newest_event_id(session)


def render_plain(request: Request, template: str, *, status: int = 200, **values: Any) -> HTMLResponse:
    """A page for somebody who is not logged in."""
    parts = parts_of(request)
    context = {"fleet": parts.settings.fleet_name, **_time_context(parts.clock()), **values}
    return HTMLResponse(environment().get_template(template).render(context), status_code=status)


def render_error(request: Request, *, status: int, title: str, detail: str) -> HTMLResponse:
    """An error as a page; it shows nothing that needs a login."""
    return render_plain(request, "error.html", status=status, code=status, title=title, detail=detail)


def _render_block(page: Template, block: str, context: dict[str, Any]) -> str:
    return "".join(page.blocks[block](page.new_context(context)))


def _time_context(now: datetime) -> dict[str, Any]:
    def when(moment: datetime | None) -> Markup:
        if moment is None:
            return Markup('<span class="muted">never</span>')
        return Markup('<time datetime="{}" title="{}">{}</time>').format(
            formats.iso(moment), formats.utc(moment), formats.ago(moment, now=now)
        )

    return {"now": now, "when": when}
