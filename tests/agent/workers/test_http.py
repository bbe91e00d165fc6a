"""HTTP on one connection: what is understood, what is refused and how, over real socket pairs."""

import json
import socket
import threading
from collections.abc import Iterator

import pytest

from covey_agent.workers.http import HttpProblemError, Request, Response, Wire, parse_head

Pair = tuple[Wire, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(5)
        theirs.settimeout(5)
        yield Wire(ours), theirs


def test_a_request_is_read_however_it_is_cut(pair: Pair) -> None:
    wire, peer = pair
    message = b"POST /v1/infer?x=1 HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nX-Thing:  a b \r\n\r\nhello"

    def send() -> None:
        for byte in message:
            peer.send(bytes([byte]))

    thread = threading.Thread(target=send)
    thread.start()
    assert wire.wait()
    request = wire.read_head()
    body = wire.read_body(request)
    thread.join()
    assert (request.method, request.path, request.length, request.keep_alive) == ("POST", "/v1/infer", 5, True)
    assert request.headers["x-thing"] == "a b"
    assert body == b"hello"


def test_two_requests_in_one_segment_are_two_requests(pair: Pair) -> None:
    wire, peer = pair
    peer.sendall(b"POST /a HTTP/1.1\r\nContent-Length: 2\r\n\r\nhiGET /b HTTP/1.1\r\n\r\n")
    seen = []
    for _ in range(2):
        assert wire.wait()
        request = wire.read_head()
        seen.append((request.path, bytes(wire.read_body(request))))
    assert seen == [("/a", b"hi"), ("/b", b"")]


def test_the_end_of_an_idle_connection_is_no_error(pair: Pair) -> None:
    wire, peer = pair
    peer.close()
    assert wire.wait() is False


@pytest.mark.parametrize("sent", [b"GET / HT", b"POST / HTTP/1.1\r\nContent-Length: 10\r\n\r\nabc"])
def test_a_request_that_never_ends_is_dropped(pair: Pair, sent: bytes) -> None:
    wire, peer = pair
    peer.sendall(sent)
    peer.shutdown(socket.SHUT_WR)
    assert wire.wait()
    with pytest.raises(ConnectionError):
        wire.read_body(wire.read_head())


def test_a_head_without_end_is_refused(pair: Pair) -> None:
    wire, peer = pair
    peer.sendall(b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 10_000)
    assert wire.wait()
    with pytest.raises(HttpProblemError) as caught:
        wire.read_head()
    assert caught.value.status == 431


def test_a_careful_client_is_told_to_continue(pair: Pair) -> None:
    wire, peer = pair
    peer.sendall(b"POST / HTTP/1.1\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n")
    assert wire.wait()
    request = wire.read_head()

    def answer() -> None:
        assert peer.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        peer.sendall(b"ok")

    thread = threading.Thread(target=answer)
    thread.start()
    assert wire.read_body(request) == b"ok"
    thread.join()


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"", 400),
        (b"\x16\x03\x01\x02\x00", 400),  # somebody speaks TLS
        (b"GET /", 400),
        (b"GET / HTTP/2", 400),
        (b"GET / HTTP/1.1\r\nno colon", 400),
        (b"GET / HTTP/1.1\r\nHost : x", 400),
        (b"GET / HTTP/1.1\r\n: x", 400),
        (b"GET / HTTP/1.1\r\n folded: x", 400),
        (b"POST / HTTP/1.1", 411),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked", 411),
        (b"POST / HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked", 411),
        (b"POST / HTTP/1.1\r\nContent-Length: 3\r\nContent-Length: 4", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: -1", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: 1e3", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: \xb2", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: 9999999999999999", 400),
    ],
)
def test_a_bad_head_is_refused_and_the_connection_with_it(head: bytes, status: int) -> None:
    with pytest.raises(HttpProblemError) as caught:
        parse_head(head)
    assert (caught.value.status, caught.value.close) == (status, True)


@pytest.mark.parametrize(
    ("head", "keep_alive"),
    [
        (b"GET / HTTP/1.1", True),
        (b"GET / HTTP/1.1\r\nConnection: Close", False),
        (b"GET / HTTP/1.0", False),
        (b"GET / HTTP/1.0\r\nConnection: keep-alive", True),
    ],
)
def test_keeping_alive_follows_the_version_and_the_header(head: bytes, keep_alive: bool) -> None:
    assert parse_head(head).keep_alive is keep_alive


def test_a_problem_is_an_rfc_9457_document() -> None:
    response = HttpProblemError(422, "wrong shape", {"expected": {"shape": [-1, 2]}}).to_response()
    assert response.content_type == "application/problem+json"
    assert json.loads(response.body) == {
        "type": "about:blank", "title": "Unprocessable Entity", "status": 422, "detail": "wrong shape", "expected": {"shape": [-1, 2]},
    }  # fmt: skip


def test_a_response_is_framed(pair: Pair) -> None:
    wire, peer = pair
    wire.send(Response(503, b"{}", headers=(("Retry-After", "1"),)), close=True)
    head = b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nContent-Length: 2\r\n"
    assert peer.recv(1000) == head + b"Retry-After: 1\r\nConnection: close\r\n\r\n{}"


def test_a_request_is_a_value() -> None:
    assert Request("GET", "/", {}, 0, True) == parse_head(b"GET / HTTP/1.1")
