"""One place that turns the server's errors into RFC 9457 problem details; no service knows an HTTP status."""

import logging
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from covey_contract.errors import ContractError
from covey_server import errors

logger = logging.getLogger(__name__)

_STATUS: tuple[tuple[type[Exception], int], ...] = (
    (errors.UnauthenticatedError, 401),
    (errors.ForbiddenError, 403),
    (errors.NotFoundError, 404),
    (errors.ConflictError, 409),
    (errors.TooLargeError, 413),
    (errors.RefusedError, 422),
    (errors.InvalidInputError, 422),
    (errors.ThrottledError, 429),
    (errors.UnavailableError, 503),
    (ContractError, 422),
    (errors.CoveyServerError, 500),
)


def status_of(error: Exception) -> int:
    """The HTTP status that stands for an error of the server."""
    return next((status for kind, status in _STATUS if isinstance(error, kind)), 500)


def problem(status: int, detail: str, **more: Any) -> JSONResponse:
    """An RFC 9457 problem response."""
    body = {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status, "detail": detail, **more}
    headers = {"WWW-Authenticate": "Bearer"} if status == 401 else None
    return JSONResponse(body, status_code=status, media_type="application/problem+json", headers=headers)


def install_error_handlers(app: FastAPI) -> None:
    """Make every error of the server leave as a problem document."""

    async def on_server_error(_request: Request, error: Exception) -> JSONResponse:
        status = status_of(error)
        if status >= 500:
            logger.warning("request failed: %s", error)
        response = problem(status, str(error))
        if isinstance(error, errors.ThrottledError):
            response.headers["Retry-After"] = str(max(1, round(error.retry_after_s)))
        return response

    async def on_validation(_request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)  # noqa: S101 - the handler is registered for this class only
        faults = [{"at": ".".join(str(part) for part in fault["loc"]), "message": fault["msg"]} for fault in error.errors()]
        detail = "; ".join(f"{fault['at']}: {fault['message']}" for fault in faults)
        return problem(422, f"the request is not valid: {detail}", errors=faults)

    async def on_http(_request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)  # noqa: S101 - the handler is registered for this class only
        return problem(error.status_code, str(error.detail))

    app.add_exception_handler(errors.CoveyServerError, on_server_error)
    app.add_exception_handler(ContractError, on_server_error)
    app.add_exception_handler(RequestValidationError, on_validation)
    app.add_exception_handler(HTTPException, on_http)
