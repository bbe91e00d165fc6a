"""How every page leaves: with strict security headers, and with errors as pages instead of problem documents.

The policy allows only files of this server and no inline script or style at all: even if a device's text were to reach a page
unescaped, a browser would not run it.
"""

import logging
from collections.abc import Callable, Coroutine
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

from fastapi import HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import RedirectResponse
from fastapi.routing import APIRoute

from covey_contract.errors import ContractError
from covey_server.api_errors import status_of
from covey_server.console.templating import render_error
from covey_server.errors import CoveyServerError, UnauthenticatedError

logger = logging.getLogger(__name__)

SECURITY_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Frame-Options": "DENY",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
}


class PageRoute(APIRoute):
    """A route of the console."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Wrap FastAPI's handler."""
        handle = super().get_route_handler()

        async def handle_page(request: Request) -> Response:
            try:
                response = await handle(request)
            except UnauthenticatedError:
                response = _to_login(request)
            except (CoveyServerError, ContractError) as exc:
                response = _error_page(request, status_of(exc), str(exc))
            except RequestValidationError as exc:
                response = _error_page(request, 422, "; ".join(f"{fault['loc'][-1]}: {fault['msg']}" for fault in exc.errors()))
            except HTTPException as exc:
                response = _error_page(request, exc.status_code, str(exc.detail))
            for name, value in SECURITY_HEADERS.items():
                response.headers.setdefault(name, value)
            response.headers.setdefault("Cache-Control", "no-store")
            return response

        return handle_page


def _to_login(request: Request) -> Response:
    wanted = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    address = "/login" if wanted == "/" else f"/login?next={quote(wanted, safe='/')}"
    if "HX-Request" in request.headers:
        return Response(status_code=204, headers={"HX-Redirect": address})
    if request.headers.get("accept", "").startswith(("text/event-stream", "application/json")):
        return Response(status_code=401)
    return RedirectResponse(address if request.method == "GET" else "/login", status_code=303)


def _error_page(request: Request, status: int, detail: str) -> Response:
    if status >= 500:
        logger.warning("page %s failed: %s", request.url.path, detail)
    return render_error(request, status=status, title=HTTPStatus(status).phrase, detail=detail)
