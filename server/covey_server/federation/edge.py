"""The only way from outside to the SuperLink: participants' own fleet calls, relayed one by one.

The SuperLink's port also carries its control API, which has no login, and paths by which a node could register itself or fetch
code. So what passes is a list of paths, not a prefix; only POST; only headers that Flower needs; bodies up to a limit, streamed.
A participant is authenticated by the SuperLink itself, by the signature of its registered key over each request.
"""

import ssl
from collections.abc import AsyncIterator

import httpx
from fastapi import APIRouter, Request
from fastapi.responses import Response, StreamingResponse

from covey_server.api_errors import problem
from covey_server.errors import TooLargeError
from covey_server.federation.superlink import HOST
from covey_server.settings import Settings

# Not among them: register-node and unregister-node (the server admits keys), get-fab and get-run (participants take neither code
# nor settings from here).
FLEET_PATHS = frozenset(
    {
        "activate-node",
        "deactivate-node",
        "send-node-heartbeat",
        "pull-messages",
        "push-messages",
        "push-object",
        "pull-object",
        "confirm-message-received",
    }
)
_SIGNATURE_HEADERS = {"flwr-public-key", "flwr-signature", "flwr-timestamp"}
_VERSION_HEADERS = {"flwr-package-name", "flwr-package-version", "flwr-component-name"}  # checked by the SuperLink
_HEADERS = frozenset({"content-type", "accept"} | _SIGNATURE_HEADERS | _VERSION_HEADERS)
_BACK = frozenset({"content-type", "content-length", "retry-after"})
_TIMEOUT = httpx.Timeout(30.0, connect=5.0)


class FleetEdge:
    """Relays fleet calls to the SuperLink on loopback."""

    def __init__(self, settings: Settings) -> None:
        context = ssl.create_default_context(cafile=str(settings.path("pki", "ca.crt")))
        self._limit = settings.edge.max_fleet_body_mb * 1024 * 1024
        self._client = httpx.AsyncClient(
            base_url=f"https://{HOST}:{settings.flower.port}", verify=context, timeout=_TIMEOUT, trust_env=False, follow_redirects=False
        )

    def router(self) -> APIRouter:
        """`POST /v1/fleet/...`, for the edge listener only."""
        router = APIRouter(prefix="/v1/fleet", include_in_schema=False)
        router.add_api_route("/{call}", self._relay, methods=["POST"])
        return router

    async def close(self) -> None:
        """Close the connections to the SuperLink."""
        await self._client.aclose()

    async def _relay(self, call: str, request: Request) -> Response:
        if call not in FLEET_PATHS:
            return problem(404, "the edge relays no such call")
        length = request.headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > self._limit:
            return problem(413, f"a message may hold {self._limit} bytes")
        headers = {name: value for name, value in request.headers.items() if name in _HEADERS}
        headers["accept-encoding"] = "identity"  # what comes back is passed on as it is
        upstream = self._client.build_request("POST", f"/v1/fleet/{call}", headers=headers, content=self._bounded(request))
        try:
            answer = await self._client.send(upstream, stream=True)
        except TooLargeError as exc:
            return problem(413, str(exc))
        except httpx.HTTPError:
            return problem(503, "the SuperLink does not answer")
        back = {name: value for name, value in answer.headers.items() if name.lower() in _BACK}
        return StreamingResponse(_streamed(answer), status_code=answer.status_code, headers=back)

    async def _bounded(self, request: Request) -> AsyncIterator[bytes]:
        seen = 0
        async for piece in request.stream():
            seen += len(piece)
            if seen > self._limit:  # a chunked body tells no length beforehand
                raise TooLargeError(f"a message may hold {self._limit} bytes")
            yield piece


async def _streamed(answer: httpx.Response) -> AsyncIterator[bytes]:
    try:
        async for piece in answer.aiter_raw():
            yield piece
    finally:
        await answer.aclose()
