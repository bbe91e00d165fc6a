"""Logging in and out."""

from typing import Annotated

from fastapi import APIRouter, Form, Request, Response
from fastapi.responses import RedirectResponse

from covey_server.access.logins import COOKIE_NAME, create_login, end_login
from covey_server.api_deps import parts_of
from covey_server.console.page_route import PageRoute
from covey_server.console.templating import render_plain
from covey_server.console.viewer import FormSender
from covey_server.errors import ForbiddenError, ThrottledError, UnauthenticatedError

router = APIRouter(route_class=PageRoute, include_in_schema=False)
_OWN_SITES = frozenset({"same-origin", "none"})


@router.get("/login")
def show_login(request: Request, next: str = "/") -> Response:  # noqa: A002 - the name in the address
    """The login page."""
    return render_plain(request, "login.html", next=_safe_path(next), user="", error="")


@router.post("/login")
def log_in(
    request: Request,
    user: Annotated[str, Form(max_length=64)] = "",
    password: Annotated[str, Form(max_length=1000)] = "",
    next: Annotated[str, Form(max_length=500)] = "/",  # noqa: A002 - the name of the field
) -> Response:
    """Check the password and set the cookie."""
    # There is no login yet whose CSRF token could be asked for; browsers say themselves where a form came from.
    if request.headers.get("sec-fetch-site", "none") not in _OWN_SITES:
        raise ForbiddenError("this login form was sent by another site")
    parts = parts_of(request)
    now = parts.clock()
    try:
        with parts.db.begin() as session:
            secret, _csrf = create_login(session, user, password, now, hours=parts.settings.api.login_hours)
    except UnauthenticatedError as exc:
        return render_plain(request, "login.html", status=401, next=_safe_path(next), user=user, error=str(exc))
    except ThrottledError as exc:
        page = render_plain(request, "login.html", status=429, next=_safe_path(next), user=user, error=str(exc))
        page.headers["Retry-After"] = str(int(exc.retry_after_s) + 1)
        return page
    response = RedirectResponse(_safe_path(next), status_code=303)
    response.set_cookie(
        COOKIE_NAME,
        secret,
        max_age=int(parts.settings.api.login_hours * 3600),
        httponly=True,
        samesite="lax",
        secure=request.url.scheme == "https" or parts.settings.public_url.startswith("https://"),
    )
    return response


@router.post("/logout")
def log_out(request: Request, _viewer: FormSender) -> Response:
    """End the login."""
    with parts_of(request).db.begin() as session:
        end_login(session, request.cookies[COOKIE_NAME])
    response = RedirectResponse("/login", status_code=303)
    response.delete_cookie(COOKIE_NAME, httponly=True, samesite="lax")
    return response


def _safe_path(wanted: str) -> str:
    """Only a path of this server: `//evil` and `/\\evil` would be another one."""
    is_own = wanted.startswith("/") and not wanted.startswith(("//", "/\\")) and wanted.isprintable()
    return wanted if is_own else "/"
