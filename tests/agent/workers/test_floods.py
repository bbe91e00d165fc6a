"""What floods do to a real inference worker: an honest application is still answered, and memory stays bounded.

Every flood here comes from a peer that may connect, e.g. a broken application on the device.
"""

import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import msgspec
import numpy as np
import pytest
from tests.fakes.children import Child
from tests.fakes.local_api import Place
from tests.fakes.poison import Behaviour, poison_file, poison_variant
from tests.fakes.tiny_releases import fill_slot, make_release

from covey_agent.client import BusyError, Client
from covey_contract.codec import digest_of
from covey_contract.release import Runtime

pytestmark = pytest.mark.runtime

MIB = 1024 * 1024
BODY = 16 * MIB
HEAD = b"POST /v1/infer HTTP/1.1\r\nContent-Type: application/octet-stream\r\n"


class Flooded:
    """A worker under attack."""

    def __init__(self, place: Place, child: Child, stack: ExitStack) -> None:
        self.place = place
        self.pid = child.process.pid
        self._stack = stack
        self.honest = place.client(timeout_s=30)
        self.honest.infer([0.25, 0.75])
        self._before = self._memory("VmRSS")
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")  # the peak is counted from here

    def connect(self) -> socket.socket:
        """One more peer."""
        peer = self._stack.enter_context(socket.socket(socket.AF_UNIX))
        peer.connect(str(self.place.path))  # waits for its turn in the kernel's queue
        peer.settimeout(20)
        return peer

    def grown(self) -> int:
        """By how many bytes resident memory has grown, at its peak."""
        return self._memory("VmHWM") - self._before

    def threads(self) -> int:
        """Of the worker."""
        return len(list(Path(f"/proc/{self.pid}/task").iterdir()))

    def _memory(self, name: str) -> int:
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


@pytest.fixture
def flooded(tmp_path: Path) -> Iterator[Flooded]:
    with ExitStack() as stack:
        place = Place(tmp_path, stack)
        yield Flooded(place, place.start(place.slot("A")), stack)


def answer_of(peer: socket.socket) -> tuple[int, str]:
    """Status and head of the answer that comes, (0, "") if the connection ends without one."""
    data = b""
    with suppress(ConnectionError):
        while b"\r\n\r\n" not in data and (part := peer.recv(65536)):
            data += part
    return (int(data.split(b" ")[1]), data.decode("latin-1")) if data else (0, "")


def test_hundreds_of_silent_connections(flooded: Flooded) -> None:
    peers = [flooded.connect() for _ in range(300)]
    assert flooded.honest.infer([0.25, 0.75]).label == "yes"
    assert flooded.threads() < 64 + 32  # the runtime has some of its own
    assert flooded.grown() < 16 * MIB
    assert len(peers) == 300


def test_peers_that_send_byte_by_byte_make_room(flooded: Flooded) -> None:
    stop = threading.Event()

    def drip(sent: list[socket.socket]) -> None:
        while not stop.wait(0.1):
            for peer in sent:
                with suppress(OSError):  # it has been ended
                    peer.send(b"a")

    peers = [flooded.connect() for _ in range(100)]
    for number, peer in enumerate(peers):
        # Half of them never end the head, the others the body.
        peer.sendall(b"GET /v1/health HTTP/1.1\r\nX: " if number % 2 else HEAD + b"X-Covey-Shape: 8\r\nContent-Length: 32\r\n\r\n")
    dripping = threading.Thread(target=drip, args=(peers,))
    dripping.start()
    try:
        for _ in range(5):
            with Client(flooded.place.path, timeout_s=30) as fresh:
                assert fresh.infer([0.25, 0.75]).label == "yes"
    finally:
        stop.set()
        dripping.join()
    ended = [peer for peer in peers if select.select([peer], [], [], 0)[0]]
    assert {answer_of(peer)[0] for peer in ended} >= {408}
    assert flooded.grown() < 16 * MIB


def test_peers_that_take_no_answer_make_room(flooded: Flooded) -> None:
    asked = HEAD + b"X-Covey-Shape: 4096,2\r\nContent-Length: 32768\r\n\r\n" + np.zeros((4096, 2), "<f4").tobytes()
    peers = [flooded.connect() for _ in range(64)]
    for peer in peers:
        peer.setblocking(False)
        with suppress(BlockingIOError):
            for _ in range(100):
                peer.send(asked)
    waited_for(lambda: is_answered(flooded))  # it may be told to come back later, as anybody
    assert flooded.grown() < 64 * MIB


def test_heads_without_end_are_refused(flooded: Flooded) -> None:
    for line in (b"X: " + b"a" * 1000 + b"\r\n", b"a" * 1000):
        for _ in range(20):
            peer = flooded.connect()
            with suppress(ConnectionError):
                peer.sendall(b"GET /v1/health HTTP/1.1\r\n" + line * 2000)
            assert answer_of(peer)[0] == 431
    assert flooded.honest.infer([0.25, 0.75]).label == "yes"
    assert flooded.grown() < 16 * MIB


def test_large_bodies_share_a_budget_and_the_rest_come_back_later(flooded: Flooded) -> None:
    head = HEAD + b"X-Covey-Shape: 2097152,2\r\nContent-Length: %d\r\n\r\n" % BODY
    peers = [flooded.connect() for _ in range(40)]
    for peer in peers:
        peer.sendall(head)
    waited_for(lambda: len(answered(peers)) == 36)
    refused = [answer_of(peer) for peer in answered(peers)]
    assert {status for status, _ in refused} == {503}
    assert all("Retry-After: 1" in head for _, head in refused)
    admitted = [peer for peer in peers if not answered([peer])]
    # Those in the budget are read whole, all at once.
    for peer in admitted:
        peer.sendall(bytes(BODY - 1))
    for peer in admitted:
        peer.sendall(b"\0")
        assert answer_of(peer)[0] == 422  # 2097152 samples
    assert flooded.grown() < 64 * MIB + 16 * MIB
    assert flooded.honest.infer([0.25, 0.75]).label == "yes"

    huge = flooded.connect()
    huge.sendall(HEAD + b"X-Covey-Shape: 2\r\nContent-Length: 1000000000000\r\n\r\n")
    assert answer_of(huge)[0] == 413


def test_slow_bodies_that_hold_the_whole_budget_make_room(flooded: Flooded) -> None:
    peers = [flooded.connect() for _ in range(4)]
    for peer in peers:
        peer.sendall(HEAD + b"X-Covey-Shape: 2097152,2\r\nContent-Length: %d\r\n\r\n" % BODY)
    waited_for(lambda: not is_answered(flooded))
    waited_for(lambda: is_answered(flooded))
    assert {answer_of(peer)[0] for peer in answered(peers)} == {408}


def test_requests_sent_ahead_without_end_are_held_back(flooded: Flooded) -> None:
    peer = flooded.connect()
    peer.setblocking(False)
    request = b"GET /v1/health HTTP/1.1\r\n\r\n"
    sent, out = 0, request * 4000
    while select.select([], [peer], [], 1.0)[1]:  # until the worker reads no more, as nobody reads its answers
        sent += peer.send(out[sent % len(request) :])
        assert sent < 64 * MIB
    with Client(flooded.place.path, timeout_s=30) as fresh:
        assert fresh.infer([0.25, 0.75]).label == "yes"
    assert flooded.grown() < 16 * MIB


def test_more_requests_than_may_wait_are_told_to_come_back(tmp_path: Path) -> None:
    data = poison_file(Behaviour.SLOW, Runtime.LITERT, ink=0.15)
    variant = msgspec.structs.replace(
        poison_variant(data, Runtime.LITERT), length=len(data), artifact=digest_of(data), chunks=[digest_of(data)]
    )
    dark, bright = np.zeros((1, 1, 28, 28), np.float32), np.ones((1, 28, 28), np.float32)
    release = make_release([variant], inputs=dark, outputs=np.zeros((1, 10), np.float32), labels=[str(digit) for digit in range(10)])
    answers: list[str] = []
    with ExitStack() as stack:
        place = Place(tmp_path, stack)
        place.start(fill_slot(tmp_path / "A", release, variant=variant.name, data=data))

        def ask() -> None:
            try:
                with Client(place.path, timeout_s=60) as client:
                    client.infer(bright)
                answers.append("answered")
            except BusyError as exc:
                answers.append(f"busy for {exc.retry_after_s:.0f} s")

        askers = [threading.Thread(target=ask) for _ in range(40)]
        for asker in askers:
            asker.start()
        for asker in askers:
            asker.join(60)
        assert len(answers) == 40  # nobody waits for ever
        assert set(answers) == {"answered", "busy for 1 s"}
        assert place.client().infer(dark[0]).label is not None


def answered(peers: list[socket.socket]) -> list[socket.socket]:
    """Those whose answer has come."""
    return [peer for peer in peers if select.select([peer], [], [], 0)[0]]


def is_answered(flooded: Flooded) -> bool:
    """Whether an honest application is, and not told to come back later."""
    try:
        with Client(flooded.place.path, timeout_s=30) as fresh:
            return bool(fresh.infer([0.25, 0.75]).label == "yes")
    except BusyError:
        return False


def waited_for(condition: Callable[[], bool], *, timeout_s: float = 30) -> None:
    """Fails if it does not come true."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)
