"""The commands' connection to the API.

The address and token come from `--url`/`--token`, from COVEY_URL/COVEY_TOKEN, or from the work folder (COVEY_HOME or the
current folder), where `covey init` leaves `admin.token`.
"""

import os
import re
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import httpx

from covey_server.cli.output import CommandError, ExitCode
from covey_server.errors import InvalidInputError
from covey_server.settings import TOKEN_FILE, default_work_dir, load_settings

_CODES = {401: ExitCode.REFUSED, 403: ExitCode.REFUSED, 404: ExitCode.NOT_FOUND, 409: ExitCode.REFUSED, 422: ExitCode.REFUSED}
_PATH = re.compile(r"(/(?!\.{1,2}(/|$))[A-Za-z0-9_.:~-]+)+")


@dataclass
class ApiClient:
    """Calls the API and turns problem documents into command errors."""

    http: httpx.Client

    def get(self, path: str, **params: Any) -> Any:
        """GET one resource or page."""
        return self.request("GET", path, params={key: value for key, value in params.items() if value is not None})

    def get_all(self, path: str, **params: Any) -> list[Any]:
        """GET every page of a list."""
        items: list[Any] = []
        cursor: str | None = None
        while True:
            page = self.get(path, cursor=cursor, **params)
            items += page["items"]
            cursor = page.get("next")
            if not cursor:
                return items

    def post(self, path: str, body: Any = None, **more: Any) -> Any:
        """POST JSON, or what `more` gives to httpx (files=, data=, headers=)."""
        return self.request("POST", path, **({"json": body} if body is not None else {}), **more)

    def patch(self, path: str, body: Any) -> Any:
        """PATCH JSON."""
        return self.request("PATCH", path, json=body)

    def delete(self, path: str) -> Any:
        """DELETE one resource."""
        return self.request("DELETE", path)

    def request(self, method: str, path: str, **options: Any) -> Any:
        """Any request below /api/v1. Raises CommandError with the server's own words."""
        if not _PATH.fullmatch(path):  # a name from the command line may not become another path
            raise CommandError(f"expected an id of letters, digits and -_.:~ in {path!r:.200}", ExitCode.USAGE)
        try:
            response = self.http.request(method, f"/api/v1{path}", **options)
        except httpx.TransportError as exc:
            raise CommandError(
                f"no answer from {self.http.base_url}: {exc}. Is `covey up` running? Set --url or COVEY_URL if it is elsewhere.",
                ExitCode.UNREACHABLE,
            ) from exc
        if response.is_success:
            return response.json() if response.content and "json" in response.headers.get("content-type", "") else response.content
        try:
            detail = response.json()["detail"]
        except (ValueError, KeyError, TypeError):
            detail = f"HTTP {response.status_code}"
        raise CommandError(detail, _CODES.get(response.status_code, ExitCode.FAILED))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.http.close()


def connect(url: str | None = None, token: str | None = None, *, timeout_s: float = 60.0) -> ApiClient:
    """A client for the server that the user means. Raises CommandError if there is no token."""
    work_dir = default_work_dir()
    url = url or os.environ.get("COVEY_URL")
    token = token or os.environ.get("COVEY_TOKEN")
    if not url:
        try:
            url = load_settings(work_dir).public_url
        except InvalidInputError as exc:
            raise CommandError(str(exc), ExitCode.USAGE) from exc
    token_file = work_dir / TOKEN_FILE
    if not token and token_file.exists():
        token = token_file.read_text("utf-8").strip()
    if not token:
        raise CommandError(
            f"no API token: set COVEY_TOKEN, or run in a work folder that holds {TOKEN_FILE} (COVEY_HOME names it)", ExitCode.USAGE
        )
    headers = {"Authorization": f"Bearer {token}", "Accept": "application/json"}
    return ApiClient(httpx.Client(base_url=url, headers=headers, timeout=timeout_s))
