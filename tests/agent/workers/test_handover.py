"""Idle connections go from worker to worker: a plain client that keeps its connection and repeats nothing sees no change of worker."""

import contextlib
import http.client
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.agent.workers.test_server import SETTINGS, Echo, UnixConnection
from tests.fakes.children import listen_unix

from covey_agent.workers.handover import Handover
from covey_agent.workers.server import Listener, Server

TOKEN = {"Authorization": "Bearer t"}


class Place:
    """Sockets as the agent owns them, and workers on them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.unix = listen_unix(path)
        self.tcp = socket.create_server(("127.0.0.1", 0))
        self.queue = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self.servers: list[Server] = []

    def start(self, handler: Echo, *, paused: bool = False) -> Server:
        """Each worker has descriptors of its own, as after inheriting them."""
        put, take = (os.dup(end.fileno()) for end in self.queue)
        listeners = [Listener(self.unix.dup()), Listener(self.tcp.dup(), "t")]
        server = Server(listeners, handler, handover=Handover(put, take), settings=SETTINGS, paused=paused)
        server.start()
        self.servers.append(server)
        return server

    def connect_tcp(self) -> http.client.HTTPConnection:
        """A plain client of the loopback socket."""
        return http.client.HTTPConnection("127.0.0.1", self.tcp.getsockname()[1], timeout=10)

    def close(self) -> None:
        """End everything."""
        drained = [server.drain(5) for server in self.servers]
        for server in self.servers:
            server.close()
        for sock in (self.unix, self.tcp, *self.queue):
            sock.close()
        assert all(drained), "a connection was left open"


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path / "s")
    yield made
    made.close()


def test_an_idle_connection_moves_to_the_worker_that_accepts(place: Place) -> None:
    old = place.start(Echo("old"))
    connection = UnixConnection(place.path)
    assert connection.ask() == "old"
    sock = connection.sock
    old.pause()
    connection.request("POST", "/", b"x")  # nobody accepts: it waits in the kernel
    place.start(Echo("new"))
    assert b'"by": "new"' in connection.getresponse().read()
    assert connection.sock is sock, "it is the same connection"
    connection.close()


def test_a_request_in_flight_is_answered_by_its_worker_and_the_next_one_by_the_other(place: Place) -> None:
    slow = Echo("old")
    slow.go.clear()
    old = place.start(slow)
    connection = UnixConnection(place.path)
    connection.request("POST", "/", b"x")
    assert slow.entered.acquire(timeout=5)
    old.pause()
    place.start(Echo("new"))
    slow.go.set()
    response = connection.getresponse()
    assert b'"by": "old"' in response.read()
    assert response.getheader("Connection") is None
    assert connection.ask() == "new"
    connection.close()


def test_a_connection_keeps_the_rules_of_its_listener(place: Place) -> None:
    old = place.start(Echo("old"))
    connection = place.connect_tcp()
    connection.request("POST", "/", b"x", TOKEN)
    assert connection.getresponse().read()
    old.pause()
    place.start(Echo("new"))
    connection.request("POST", "/", b"x")
    response = connection.getresponse()
    assert (response.status, bool(response.read())) == (401, True)
    connection.close()


def test_a_full_queue_ends_the_connection_properly(place: Place) -> None:
    old = place.start(Echo("old"))
    connection = UnixConnection(place.path)
    assert connection.ask() == "old"
    fill(place.queue[0])
    old.pause()
    assert connection.sock.recv(1) == b""
    connection.close()


@pytest.mark.parametrize("kind", ["unix", "tcp"])
def test_no_request_is_lost_while_workers_change_back_and_forth(place: Place, kind: str) -> None:
    """A request sent to a connection that is idle at that very moment is what used to be lost on TCP."""
    workers = [place.start(Echo("a")), place.start(Echo("b"), paused=True)]
    stop, answers, failures = threading.Event(), [0] * 6, []

    def apply_load(number: int) -> None:
        connection = UnixConnection(place.path) if kind == "unix" else place.connect_tcp()
        pause = 0.0005 * number  # some ask all the time, others are mostly idle
        try:
            while not stop.wait(pause):
                connection.request("POST", "/", b"x", TOKEN)
                response = connection.getresponse()
                response.read()
                assert response.status == 200
                assert response.getheader("Connection") is None, "nobody is sent away"
                answers[number] += 1
        except Exception as exc:  # noqa: BLE001 - whatever a client sees is what this counts
            failures.append(repr(exc))
        connection.close()

    threads = [threading.Thread(target=apply_load, args=(number,)) for number in range(len(answers))]
    for thread in threads:
        thread.start()
    for _ in range(30):
        wait_for_more(answers, failures)
        workers[0].pause()
        workers[1].resume()
        workers.reverse()
    stop.set()
    for thread in threads:
        thread.join(10)
    assert failures == []


def fill(queue: socket.socket) -> None:
    """Until it takes no more."""
    queue.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            queue.send(b"x" * 65536)


def wait_for_more(answers: list[int], failures: list[str]) -> None:
    """Every client has got an answer more."""
    seen = list(answers)
    until(lambda: failures or all(now > before for now, before in zip(answers, seen, strict=True)))


def until(condition: Callable[[], object]) -> None:
    """Wait for it, generously."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.0005)
