"""The connection rules of an inference worker, with a slow fake model behind real sockets: hand-over, back-pressure, bounds."""

import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.fakes.children import listen_unix

from covey_agent.workers.http import Request, Response
from covey_agent.workers.server import Listener, Server, ServerSettings

SETTINGS = ServerSettings(grace_s=0.05, io_timeout_s=2.0)
ReadBody = Callable[[], bytearray]


class Echo:
    """A handler that answers with its name, when it is let."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.go = threading.Event()
        self.go.set()
        self.entered = threading.Semaphore(0)

    def __call__(self, request: Request, read_body: ReadBody) -> Response:
        body = read_body()
        self.entered.release()
        assert self.go.wait(5)
        return Response(200, json.dumps({"by": self.name, "length": len(body)}).encode())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "s"


@pytest.fixture
def sock(path: Path) -> Iterator[socket.socket]:
    with listen_unix(path) as made:
        yield made


class UnixConnection(http.client.HTTPConnection):
    """The standard library's client, so that our server is held to somebody else's reading of HTTP."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=5)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(5)
        self.sock.connect(str(self._path))

    def ask(self, body: bytes = b"x") -> str:
        self.request("POST", "/", body)
        response = self.getresponse()
        by: str = json.loads(response.read())["by"]
        return by


class Starter:
    """Starts servers on one socket, and ends them with the test."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.servers: list[Server] = []

    def __call__(self, handler: Echo, *, paused: bool = False, settings: ServerSettings = SETTINGS) -> Server:
        # Each worker has a descriptor of its own for the one socket, as after inheriting it.
        server = Server([Listener(self._sock.dup())], handler, settings=settings, paused=paused)
        server.start()
        self.servers.append(server)
        return server


@pytest.fixture
def start(sock: socket.socket) -> Iterator[Starter]:
    starter = Starter(sock)
    yield starter
    drained = [server.drain(5) for server in starter.servers]
    for server in starter.servers:
        server.close()
    assert all(drained), "a connection was left open"


def test_requests_are_answered_on_one_connection(start: Starter, path: Path) -> None:
    server = start(Echo("a"))
    connection = UnixConnection(path)
    assert [connection.ask() for _ in range(3)] == ["a", "a", "a"]
    connection.close()
    assert server.drain(5)


def test_a_paused_worker_leaves_new_connections_to_the_other(start: Starter, path: Path) -> None:
    old, new = start(Echo("old")), start(Echo("new"), paused=True)
    old.pause()
    connection = UnixConnection(path)
    connection.request("POST", "/", b"x")  # waits in the kernel: nobody accepts
    new.resume()
    assert json.loads(connection.getresponse().read())["by"] == "new"
    connection.close()


def test_a_request_in_flight_is_answered_and_its_connection_moves_on(start: Starter, path: Path) -> None:
    slow = Echo("old")
    slow.go.clear()
    old = start(slow)
    connection = UnixConnection(path)
    connection.request("POST", "/", b"x")
    assert slow.entered.acquire(timeout=5)
    old.pause()
    start(Echo("new"))
    slow.go.set()
    response = connection.getresponse()
    assert json.loads(response.read())["by"] == "old"
    assert response.getheader("Connection") == "close"
    assert connection.ask() == "new"
    connection.close()


def test_an_idle_connection_is_closed_after_the_grace(start: Starter, path: Path) -> None:
    server = start(Echo("a"))
    connection = UnixConnection(path)
    connection.ask()
    server.pause()
    assert connection.sock.recv(1) == b""
    connection.close()
    assert server.drain(5)


def test_an_idle_connection_that_asks_within_the_grace_is_answered(start: Starter, path: Path) -> None:
    server = start(Echo("a"), settings=ServerSettings(grace_s=5.0))
    connection = UnixConnection(path)
    connection.ask()
    server.pause()
    assert connection.ask() == "a"
    connection.close()
    assert server.drain(5)


def test_a_request_half_sent_at_the_pause_is_still_read(start: Starter, path: Path) -> None:
    server = start(Echo("a"))
    with socket.socket(socket.AF_UNIX) as peer:
        peer.settimeout(5)
        peer.connect(str(path))
        peer.sendall(b"POST / HTTP/1.1\r\nContent-Length: 4\r\n\r\nab")
        time.sleep(0.05)  # let it begin
        server.pause()
        time.sleep(0.15)  # beyond the grace
        peer.sendall(b"cd")
        assert b'"length": 4' in peer.recv(1000)
    assert server.drain(5)


def test_drain_waits_for_what_is_in_flight(start: Starter, path: Path) -> None:
    slow = Echo("a")
    slow.go.clear()
    server = start(slow)
    connection = UnixConnection(path)
    connection.request("POST", "/", b"x")
    assert slow.entered.acquire(timeout=5)
    assert not server.drain(0.1)
    slow.go.set()
    assert json.loads(connection.getresponse().read())["by"] == "a"
    connection.close()
    assert server.drain(5)


def test_at_the_limit_the_longest_idle_connection_makes_room(start: Starter, path: Path) -> None:
    start(Echo("a"), settings=ServerSettings(max_connections=2, grace_s=0.05))
    first, second, third = (UnixConnection(path) for _ in range(3))
    first.ask()
    second.ask()
    assert third.ask() == "a"
    assert first.sock.recv(1) == b""
    assert second.ask() == "a"
    for connection in (first, second, third):
        connection.close()


def test_a_token_guards_its_listener_only(sock: socket.socket, path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as tcp:
        server = Server([Listener(sock.dup()), Listener(tcp.dup(), "s3cret")], Echo("a"), settings=SETTINGS)
        server.start()
        port = tcp.getsockname()[1]
        statuses = []
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic s3cret"}, {"Authorization": "Bearer s3cret"}):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            connection.request("POST", "/", b"x", headers)
            response = connection.getresponse()
            statuses.append((response.status, response.getheader("WWW-Authenticate")))
            response.read()
            connection.close()
        assert statuses == [(401, "Bearer")] * 3 + [(200, None)]
        unguarded = UnixConnection(path)
        assert unguarded.ask() == "a"
        unguarded.close()
        assert server.drain(5)
        server.close()


def test_garbage_gets_an_answer_and_harms_nobody(start: Starter, path: Path) -> None:
    server = start(Echo("a"))
    for garbage in (b"\x00" * 100 + b"\r\n\r\n", b"GET\r\n\r\n", b"A" * 200_000):
        with socket.socket(socket.AF_UNIX) as peer:
            peer.settimeout(5)
            peer.connect(str(path))
            peer.sendall(garbage)
            assert peer.recv(9) == b"HTTP/1.1 "
    connection = UnixConnection(path)
    assert connection.ask() == "a"
    connection.close()
    assert server.drain(5)


def test_a_request_that_finds_no_memory_is_answered_and_the_next_one_too(start: Starter, path: Path) -> None:
    class Hungry(Echo):
        def __call__(self, request: Request, read_body: ReadBody) -> Response:
            if len(read_body()) > 1:
                raise MemoryError
            return Response(200, b'{"by": "a"}')

    start(Hungry("a"))
    connection = UnixConnection(path)
    connection.request("POST", "/", b"xx")
    response = connection.getresponse()
    assert (response.status, response.getheader("Retry-After")) == (503, "1")
    assert b"memory" in response.read()
    assert connection.ask() == "a"
    connection.close()


def test_switching_back_and_forth_under_load_loses_no_request_of_a_plain_client(start: Starter, path: Path) -> None:
    """http.client does not repeat anything by itself, so one dropped request is one failure here."""
    workers = [start(Echo("a")), start(Echo("b"), paused=True)]
    stop, answers, failures = threading.Event(), [], []

    def apply_load() -> None:
        connection = UnixConnection(path)
        while not stop.is_set():
            try:
                answers.append(connection.ask())
            except (OSError, http.client.HTTPException) as exc:
                failures.append(repr(exc))
                connection.close()
        connection.close()

    threads = [threading.Thread(target=apply_load) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(6):
        seen = len(answers)
        while len(answers) < seen + 40:
            time.sleep(0.001)
        workers[1].resume()
        workers[0].pause()
        workers.reverse()
    stop.set()
    for thread in threads:
        thread.join(10)
    assert failures == []
    assert {"a", "b"} <= set(answers)
