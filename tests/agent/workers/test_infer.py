"""The real inference worker with a real runtime: its API, its windows, its death, and changing workers under load."""

import http.client
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.fakes.children import Child
from tests.fakes.local_api import Place

from covey_agent.client import Client, ClientError, RequestError, UnavailableError
from covey_agent.core.jobs import Drain, InferJob, InferWindow, Pause, Resume
from covey_agent.workers.infer import EXIT_NO_MODEL

pytestmark = pytest.mark.runtime


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with ExitStack() as stack:
        yield Place(tmp_path, stack)


def drained(child: Child) -> InferWindow:
    """The window of everything so far."""
    child.order(Drain())
    last = child.rest()[-1]
    assert child.process.returncode == 0
    assert isinstance(last, InferWindow)
    return last


def test_the_api_in_one_life(place: Place) -> None:
    child = place.start(place.slot("A", version=3))
    client = place.client()

    one = client.infer([0.25, 0.75])
    assert (one.label, one.outputs, one.model, one.version, one.variant, one.slot) == ("yes", [0.25, 0.75], "tiny", 3, "onnx-float32", "A")
    assert one.confidence == pytest.approx(0.75)
    batch = client.infer(np.array([[0.9, 0.1], [2.0, 5.0]]))
    assert batch.label == ["no", "yes"]
    np.testing.assert_allclose(batch.outputs, [[0.9, 0.1], [2.0, 5.0]], rtol=1e-6)

    card = client.model()
    assert (card["labels"], card["input"], card["runtime"]) == (["no", "yes"], {"shape": [-1, 2], "dtype": "float32"}, "onnxruntime")
    assert client.health()["status"] == "serving"
    assert client.feedback("yes", id=one.id) == {"labelled": 1, "correct": 1}
    assert client.feedback(["no", "no"]) == {"labelled": 2, "correct": 1}  # of the newest answer

    with pytest.raises(RequestError) as wrong_shape:
        client.infer([1.0, 2.0, 3.0])
    assert wrong_shape.value.status == 422
    assert wrong_shape.value.problem["expected"] == {"shape": [-1, 2], "dtype": "float32"}
    assert wrong_shape.value.problem["got"] == {"shape": [3], "dtype": "float32"}
    with pytest.raises(RequestError, match="no answer"):
        client.feedback("yes", id="unknown")
    with pytest.raises(RequestError, match="no label"):
        client.feedback("perhaps", id=one.id)
    client.close()

    window = drained(child)
    assert (window.requests, window.inputs, window.errors, window.rejected) == (2, 3, 0, 3)
    assert window.classes == {"no": 1, "yes": 2}
    assert (window.labelled, window.labelled_correct) == (3, 2)
    assert 0 < window.p50_ms <= window.p95_ms


def post(place: Place, path: str, body: bytes, **headers: str) -> tuple[int, dict[str, Any]]:
    """By the standard library's client over TCP, so that ours does not mark its own work."""
    connection = http.client.HTTPConnection("127.0.0.1", place.tcp.getsockname()[1], timeout=10)
    connection.request("POST" if body else "GET", path, body or None, {"Authorization": "Bearer t"} | headers)
    response = connection.getresponse()
    answer = json.loads(response.read())
    connection.close()
    return response.status, answer


def test_plain_http_over_loopback(place: Place) -> None:
    place.start(place.slot("A"))
    status, answer = post(place, "/v1/infer", b'{"inputs": [[0.25, 0.75], [1, 0]]}')
    assert (status, answer["outputs"], answer["label"], answer["slot"]) == (200, [[0.25, 0.75], [1.0, 0.0]], ["yes", "no"], "A")
    raw = np.array([0.25, 0.75], "<f4").tobytes()
    status, answer = post(place, "/v1/infer", raw, **{"Content-Type": "application/octet-stream", "X-Covey-Shape": "2"})
    assert (status, answer["outputs"], answer["label"]) == (200, [0.25, 0.75], "yes")
    assert post(place, "/v1/nothing", b"{}")[0] == 404
    assert post(place, "/v1/infer", b"")[0] == 405
    assert post(place, "/v1/model", b"{}")[0] == 405
    assert post(place, "/v1/infer", b"{", Authorization="Bearer wrong")[0] == 401
    assert post(place, "/v1/infer", b"{")[0] == 400
    assert post(place, "/v1/feedback", b'{"label": 7}')[0] == 400
    status, answer = post(place, "/v1/infer", b" " * 5_000_000)
    assert status == 413
    assert "application/octet-stream" in answer["detail"]


def test_a_window_comes_also_when_nothing_happens(place: Place) -> None:
    child = place.start(place.slot("A"), window_s=0.05)
    for _ in range(2):
        assert child.wait_for(InferWindow).requests == 0


def test_a_constant_model_shows_in_the_window(place: Place) -> None:
    child = place.start(place.slot("A", weights=[[0, 0], [0, 0]]))
    client = place.client()
    for index in range(11):
        client.infer([float(index), 1.0])
    client.close()
    assert drained(child).constant_run == 10


def test_a_model_that_answers_infinity_is_an_error_of_the_model(place: Place) -> None:
    child = place.start(place.slot("A", weights=[[3e38, 0], [0, 1]]))
    client = place.client()
    with pytest.raises(RequestError, match="infinity"):
        client.infer([1e3, 0.0])
    client.close()
    window = drained(child)
    assert (window.requests, window.errors, window.nonfinite, window.rejected) == (1, 1, 1, 0)


def test_a_slot_that_cannot_be_served_ends_the_worker_with_a_code(place: Place) -> None:
    slot_dir = place.slot("A")
    (slot_dir / "model.onnx").unlink()
    job = InferJob(slot_dir=str(slot_dir), slot="A", unix_fd=place.sock.fileno())
    with Child("infer", job, pass_fds=[place.sock.fileno()]) as child:
        assert child.rest() == []
        assert child.process.returncode == EXIT_NO_MODEL


def test_the_end_of_standard_input_drains(place: Place) -> None:
    child = place.start(place.slot("A"))
    assert child.process.stdin
    child.process.stdin.close()
    child.rest()
    assert child.process.returncode == 0


# -- changing workers --------------------------------------------------------------------------------------------------


class Load:
    """Applications that ask without pause; every request must be answered."""

    def __init__(self, place: Place, *, applications: int = 3) -> None:
        self.versions: list[int] = []
        self.failures: list[str] = []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(place.path,)) for _ in range(applications)]
        for thread in self._threads:
            thread.start()

    def _ask(self, path: Path) -> None:
        with Client(path, timeout_s=10.0) as client:
            while not self._stop.is_set():
                try:
                    self.versions.append(client.infer([0.1, 0.9]).version)
                except ClientError as exc:
                    self.failures.append(repr(exc))

    def wait_for(self, version: int, *, count: int = 20) -> None:
        """Until the newest answers are all by this version."""
        deadline = time.monotonic() + 20
        while self.versions[-count:] != [version] * count:
            assert time.monotonic() < deadline, f"no {count} answers in a row by version {version}: {self.failures[:3]}"
            time.sleep(0.005)

    def end(self) -> None:
        """Stop, and require that nothing failed."""
        self._stop.set()
        for thread in self._threads:
            thread.join(15)
        assert self.failures == []


def test_activation_and_rollback_under_load_fail_no_request(place: Place) -> None:
    old = place.start(place.slot("A", version=1))
    load = Load(place)
    load.wait_for(1)
    new = place.start(place.slot("B", version=2))  # ready: both accept for an instant
    old.order(Pause())
    load.wait_for(2)
    old.order(Resume())  # rollback: the old one is warm
    new.process.kill()
    load.wait_for(1)
    load.end()


def test_a_worker_that_crashes_under_load_fails_no_request(place: Place) -> None:
    """A real SIGSEGV; the connections that it held are repeated by the client on the other worker."""
    crashing, standby = place.start(place.slot("A", version=1)), place.start(place.slot("B", version=2), paused=True)
    load = Load(place)
    load.wait_for(1)
    crashing.process.send_signal(signal.SIGSEGV)
    assert crashing.process.wait(10) == -signal.SIGSEGV
    standby.order(Resume())
    load.wait_for(2)
    load.end()


def test_commit_drains_the_old_worker_under_load(place: Place) -> None:
    old = place.start(place.slot("A", version=1))
    load = Load(place)
    load.wait_for(1)
    place.start(place.slot("B", version=2))
    drained(old)
    load.wait_for(2)
    load.end()


def test_nobody_there_is_said_at_the_deadline(place: Place) -> None:
    with pytest.raises(UnavailableError, match=r"within 0\.2 s"):
        place.client(timeout_s=0.2).infer([1.0, 2.0])  # connects, for the agent listens, but no worker accepts
    with pytest.raises(UnavailableError), Client(place.path.parent / "no-agent", timeout_s=0.1) as client:
        client.health()


def test_the_client_from_a_shell(place: Place, tmp_path: Path) -> None:
    place.start(place.slot("A"))
    image = tmp_path / "image.npy"
    np.save(image, np.array([0.1, 0.9], np.float32))
    command = [sys.executable, "-m", "covey_agent.client", "--socket", str(place.path), str(image)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    assert json.loads(done.stdout)["label"] == "yes"
    np.save(image, np.zeros(3, np.uint8))
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 1
    assert "expected float32[2]" in done.stderr


# -- streaming ---------------------------------------------------------------------------------------------------------


def numbered(count: int, size: int) -> Iterator[np.ndarray[Any, Any]]:
    """Batches whose answers tell which they are to."""
    for number in range(count):
        yield np.full((size, 2), number, np.float32)


def test_a_stream_of_batches_is_answered_in_order_and_takes_no_more_than_it_may(place: Place) -> None:
    place.start(place.slot("A"))
    taken = 0

    def source() -> Iterator[np.ndarray[Any, Any]]:
        nonlocal taken
        for batch in numbered(50, 3):
            taken += 1
            yield batch

    seen = []
    for result in place.client().stream(source(), ahead=4):
        seen.append(result.outputs[2][0])
        assert taken <= len(seen) + 4
    assert seen == [float(number) for number in range(50)]
    assert list(place.client().stream([])) == []
    with pytest.raises(ValueError, match="at least one"):
        next(place.client().stream([], ahead=0))


def test_batches_larger_than_every_buffer_flow_both_ways_at_once(place: Place) -> None:
    place.start(place.slot("A"))
    results = list(place.client().stream(numbered(12, 4096), ahead=8))
    assert [result.outputs[4095][1] for result in results] == [float(number) for number in range(12)]


def test_arrays_of_every_kind_mean_the_same(place: Place) -> None:
    place.start(place.slot("A"))
    client = place.client()
    plain = np.array([[0.25, 0.75], [2.0, 5.0], [9.0, 8.0]], np.float32)
    wide = np.zeros((3, 4), np.float32)
    wide[:, ::2] = plain
    frozen = plain.copy()
    frozen.flags.writeable = False
    for array in (plain, plain.astype(">f4"), plain.astype(np.float64), np.asfortranarray(plain), wide[:, ::2], frozen, plain.tolist()):
        assert client.infer(array).outputs == plain.tolist()


def test_whoever_makes_batches_may_use_its_memory_again(place: Place) -> None:
    place.start(place.slot("A"))
    memory = np.zeros((2, 2), np.float32)

    def source() -> Iterator[np.ndarray[Any, Any]]:
        for number in range(20):
            memory[:] = number
            yield memory

    assert [result.outputs[0][0] for result in place.client().stream(source(), ahead=8)] == [float(number) for number in range(20)]


def test_an_error_ends_a_stream_at_its_batch(place: Place) -> None:
    place.start(place.slot("A"))
    stream = place.client().stream([np.zeros((1, 2), np.float32), np.zeros((1, 3), np.float32), np.zeros((1, 2), np.float32)])
    assert next(stream).label == ["no"]
    with pytest.raises(RequestError) as wrong:
        next(stream)
    assert wrong.value.problem["got"] == {"shape": [1, 3], "dtype": "float32"}
    assert list(stream) == []


def test_a_stream_goes_on_through_a_change_of_models_and_a_crash(place: Place) -> None:
    old, new = place.start(place.slot("A", version=1)), place.start(place.slot("B", version=2), paused=True)
    stream = place.client(timeout_s=30).stream(numbered(300, 16), ahead=3)
    seen = [(next(stream).version, number) for number in range(100)]
    new.order(Resume())
    old.order(Pause())
    results = [next(stream) for _ in range(100)]
    assert results[-1].version == 2
    third = place.start(place.slot("C", version=3))
    new.process.send_signal(signal.SIGKILL)
    results += list(stream)
    assert results[-1].version == 3
    assert [result.outputs[0][0] for result in results] == [float(number) for number in range(100, 300)]
    assert len(seen) == 100
    drained(third)


def test_nobody_answers_a_stream_in_vain(place: Place) -> None:
    with pytest.raises(UnavailableError):
        list(place.client(timeout_s=0.3).stream(numbered(1, 1)))
