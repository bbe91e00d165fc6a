"""Deployments commit, are superseded and roll back in a row under load: no request that a worker had taken is dropped.

The clients are raw sockets that repeat nothing: an answer that does not come, or is not 200, is a failure.
"""

import itertools
import signal
import socket
import threading
from collections.abc import Callable, Iterator

import pytest
from tests.agent.integration.device import Device
from tests.fakes.nats_broker import free_port, wait_until
from tests.fakes.poison import Behaviour, tame_images

from covey_contract.messages import DeploymentState as S

pytestmark = [pytest.mark.broker, pytest.mark.runtime, pytest.mark.slow]
IMAGES = [image.astype("<f4").tobytes() for image in tame_images(16)]
Connect = Callable[[], socket.socket]


class Plain:
    """An application with one connection for all of its requests, or one for each."""

    def __init__(self, connect: Connect, *, token: str, keep: bool, pause_s: float) -> None:
        self.answers = 0
        self.moved = 0  # times that a kept connection was ended by the other side, after an answer
        self.failures: list[str] = []
        self._connect = connect
        self._head = f"Authorization: Bearer {token}\r\n" if token else ""
        self._keep = keep
        self._pause_s = pause_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """No more requests."""
        self._stop.set()
        self._thread.join(30)

    def _run(self) -> None:
        sock: socket.socket | None = None
        images = itertools.cycle(IMAGES)
        while not self._stop.wait(self._pause_s):
            sock = sock or self._connect()
            try:
                answer = self._ask(sock, next(images))
            except OSError as exc:
                self.failures.append(f"after {self.answers} answers: {exc!r}")
                answer = b"connection: close"
            if not self._keep or b"connection: close" in answer.lower():
                self.moved += self._keep
                sock.close()
                sock = None
        if sock is not None:
            sock.close()

    def _ask(self, sock: socket.socket, image: bytes) -> bytes:
        """The head of the answer."""
        wish = "" if self._keep else "Connection: close\r\n"
        kind = "Content-Type: application/octet-stream\r\nX-Covey-Shape: 1,28,28\r\n"
        head = f"POST /v1/infer HTTP/1.1\r\nHost: x\r\n{self._head}{wish}{kind}Content-Length: {len(image)}\r\n\r\n"
        sock.sendall(head.encode() + image)
        data = b""
        while (end := data.find(b"\r\n\r\n")) < 0 or len(data) < end + 4 + _length(data[:end]):
            part = sock.recv(65536)
            if not part:
                raise ConnectionError(f"the connection ended after {len(data)} bytes of an answer")
            data += part
        if not data.startswith(b"HTTP/1.1 200 "):
            raise ConnectionError(data[:200].decode("latin-1"))
        self.answers += 1
        return data[:end]


def _length(head: bytes) -> int:
    return next(int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))


@pytest.fixture
def clients(device: Device) -> Iterator[list[Plain]]:
    """Eight applications: by Unix socket and by TCP, with a kept connection and without, busy and mostly idle."""
    port = free_port()
    device.daemon.stop(signal.SIGTERM)
    device.daemon.environment = {"COVEY_AGENT_INFERENCE_TCP_PORT": str(port)}
    device.daemon.start()
    device.commit_first()
    token = (device.daemon.state_dir / "run" / "infer.token").read_text().strip()

    def by_unix() -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(30)
        sock.connect(device.socket)
        return sock

    def by_tcp() -> socket.socket:
        return socket.create_connection(("127.0.0.1", port), timeout=30)

    ways = itertools.product([(by_unix, ""), (by_tcp, token)], [True, False], [0.005, 0.05])
    made = [Plain(connect, token=token, keep=keep, pause_s=pause_s) for (connect, token), keep, pause_s in ways]
    yield made
    for client in made:
        client.stop()


def test_no_request_is_lost_while_deployments_come_and_go(device: Device, clients: list[Plain]) -> None:
    server = device.server
    wait_until(lambda: all(client.answers for client in clients), what="a first answer of each")
    report = server.wait_for(server.order(server.publish_release(2, ink=3.0), probation_s=1), S.COMMITTED)
    serving = report.active_slot

    bad = server.order(server.publish_release(3, Behaviour.CONSTANT), probation_s=60)
    assert "the very same output" in (server.wait_for(bad, S.ROLLED_BACK).deployment or pytest.fail("no deployment")).reason

    given_up = server.order(server.publish_release(4, ink=4.0), probation_s=60)
    server.wait_for(given_up, S.PROBATION)
    report = server.wait_for(server.order(server.publish_release(5, ink=5.0), probation_s=1), S.COMMITTED)
    assert report.active_slot != serving

    seen = [client.answers for client in clients]
    wait_until(lambda: all(client.answers > before for client, before in zip(clients, seen, strict=True)), what="answers of the last one")
    assert [client.failures for client in clients] == [[]] * len(clients)
    assert [client.moved for client in clients] == [0] * len(clients), "kept connections live through every change"
