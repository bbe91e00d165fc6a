"""HTTP/1.1 on one connection: as much of it as a local API needs, and strict about the rest.

Requests with a body need a Content-Length; chunked bodies are refused. Heads, bodies and the time to send them are bounded.
The standard library's server spends more time on a request's head than a small model on its answer (measured), hence this.
"""

import socket
import time
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

import msgspec

MAX_HEAD_BYTES = 16 * 1024
_READ_BYTES = 64 * 1024
_REQUEST_TIME_S = 30.0  # from a request's first byte to its last
_LINGER_S = 2.0
_LINGER_BYTES = 32 * 1024 * 1024  # what a refused body may still hold: many clients read an answer only after sending everything


@dataclass(frozen=True, slots=True)
class Request:
    """One request, its body still to be read by `Wire.read_body`."""

    method: str
    path: str
    headers: dict[str, str]  # names in lower case
    length: int
    keep_alive: bool


@dataclass(frozen=True, slots=True)
class Response:
    """What to send back."""

    status: int
    body: bytes
    content_type: str = "application/json"
    headers: tuple[tuple[str, str], ...] = ()
    close: bool = False  # the connection is of no further use, e.g. because a body was left unread


@dataclass(slots=True, eq=False)
class HttpProblemError(Exception):
    """A request that cannot be answered, as RFC 9457 problem details."""

    status: int
    detail: str
    extra: dict[str, Any] = field(default_factory=dict)  # e.g. what was expected and what came
    headers: tuple[tuple[str, str], ...] = ()
    close: bool = False

    def to_response(self) -> Response:
        """The response that tells the caller."""
        title = HTTPStatus(self.status).phrase
        body = msgspec.json.encode({"type": "about:blank", "title": title, "status": self.status, "detail": self.detail, **self.extra})
        return Response(self.status, body, "application/problem+json", self.headers, self.close)


class Wire:
    """Requests out of, and responses into, one accepted connection whose socket has a timeout."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._buffer = b""
        self._deadline = 0.0

    @property
    def has_begun(self) -> bool:
        """Whether a part of the next request is here already."""
        return bool(self._buffer)

    def wait(self) -> bool:
        """Block until a request begins; False if the peer (or `shutdown`) ended the connection. Raises TimeoutError when idle."""
        if not self._buffer:
            self._buffer = self._sock.recv(_READ_BYTES)
        self._deadline = time.monotonic() + _REQUEST_TIME_S
        return bool(self._buffer)

    def read_head(self) -> Request:
        """The request that has begun. Raises HttpProblemError, or ConnectionError if it never ends."""
        while (end := self._buffer.find(b"\r\n\r\n")) < 0:
            if len(self._buffer) > MAX_HEAD_BYTES:
                raise HttpProblemError(431, f"the head of a request may have {MAX_HEAD_BYTES} bytes", close=True)
            self._buffer += self._receive(_READ_BYTES)
        head, self._buffer = self._buffer[:end], self._buffer[end + 4 :]
        return parse_head(head)

    def read_body(self, request: Request) -> bytearray:
        """The body; the caller has checked that its length is bearable. Raises ConnectionError if it is cut short."""
        body = bytearray(request.length)
        ready = memoryview(self._buffer)[: request.length]
        body[: len(ready)] = ready
        self._buffer = self._buffer[request.length :]
        if len(ready) < request.length:
            if request.headers.get("expect", "").lower() == "100-continue":
                self._sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
            rest = memoryview(body)[len(ready) :]
            while rest:
                count = self._sock.recv_into(rest)
                self._check(count)
                rest = rest[count:]
        return body

    def hurry(self) -> None:
        """The request that is arriving is late from now on. For any thread."""
        self._deadline = 0.0

    def send(self, response: Response, *, close: bool) -> None:
        """Send a response; `close` announces that no other request will be read here."""
        lines = [
            f"HTTP/1.1 {response.status} {HTTPStatus(response.status).phrase}",
            f"Content-Type: {response.content_type}",
            f"Content-Length: {len(response.body)}",
            *(f"{name}: {value}" for name, value in response.headers),
        ]
        if close:
            lines.append("Connection: close")
        self._sock.sendall("\r\n".join([*lines, "", ""]).encode("latin-1") + response.body)

    def linger(self) -> None:
        """Close such that the peer can read the response even if it is still sending: closing with unread bytes would reset it."""
        self._sock.shutdown(socket.SHUT_WR)
        self._sock.settimeout(_LINGER_S)
        left, deadline = _LINGER_BYTES, time.monotonic() + _LINGER_S
        while left > 0 and time.monotonic() < deadline and (data := self._sock.recv(_READ_BYTES)):
            left -= len(data)

    def _receive(self, size: int) -> bytes:
        data = self._sock.recv(size)
        self._check(len(data))
        return data

    def _check(self, count: int) -> None:
        if time.monotonic() > self._deadline:
            raise TimeoutError("the request takes too long to arrive")
        if count == 0:
            raise ConnectionError("the peer left in the middle of a request")


def parse_head(head: bytes) -> Request:
    """Parse a request's head, without its final empty line. Raises HttpProblemError."""
    first, *lines = head.decode("latin-1").split("\r\n")
    parts = first.split(" ")
    if len(parts) != 3 or parts[2] not in ("HTTP/1.1", "HTTP/1.0"):
        raise HttpProblemError(400, "expected an HTTP/1.1 request line", close=True)
    headers: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        name = name.lower()
        # A space around the name and a repeated length are how request smuggling begins (RFC 9112, sections 5.1 and 6.3).
        if not colon or not name or name != name.strip() or (name in headers and name in ("content-length", "transfer-encoding")):
            raise HttpProblemError(400, "expected a header line of the form 'Name: value'", close=True)
        headers[name] = value.strip()
    wish = headers.get("connection", "").lower()
    keep_alive = "close" not in wish if parts[2] == "HTTP/1.1" else "keep-alive" in wish
    path = parts[1].partition("?")[0]
    return Request(parts[0], path, headers, _body_length(parts[0], headers), keep_alive)


def _body_length(method: str, headers: dict[str, str]) -> int:
    if "transfer-encoding" in headers:
        raise HttpProblemError(411, "send a Content-Length; chunked bodies are not read here", close=True)
    length = headers.get("content-length")
    if length is None:
        if method in ("POST", "PUT", "PATCH"):
            raise HttpProblemError(411, "send a Content-Length", close=True)
        return 0
    if not (length.isascii() and length.isdecimal() and len(length) <= 15):
        raise HttpProblemError(400, f"expected a number as Content-Length, got {length!r:.40}", close=True)
    return int(length)
