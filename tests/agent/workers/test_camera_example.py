"""examples/camera as a developer starts it, before real workers that change; and its way of making pictures fit."""

import importlib.util
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from tests.fakes.local_api import Place
from tests.fakes.tiny_releases import fill_slot, make_release, make_variant

from covey_agent.core.jobs import Drain, InferWindow, Resume

CAMERA = Path(__file__).parents[3] / "examples" / "camera"


def load_frames() -> Any:
    """The module examples/camera/frames.py."""
    name = "covey_camera_frames"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, CAMERA / "frames.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # dataclasses look here
        spec.loader.exec_module(module)
    return sys.modules[name]


frames = load_frames()


class App:
    """The application as a process of its own."""

    def __init__(self, process: "subprocess.Popen[str]", log: Path) -> None:
        self.process = process
        self._log = log

    def answers(self) -> list[dict[str, Any]]:
        """So far."""
        return [json.loads(line) for line in self._log.read_text().splitlines() if line.endswith("}")] if self._log.exists() else []

    def wait_for(self, condition: Callable[[dict[str, Any]], bool]) -> None:
        """Until an answer is so."""
        deadline = time.monotonic() + 30
        while not any(condition(answer) for answer in self.answers()):
            assert time.monotonic() < deadline, self.answers()[-3:]
            assert self.process.poll() is None
            time.sleep(0.02)

    def stop(self) -> str:
        """SIGTERM; what it said at the end."""
        self.process.terminate()
        return self.process.communicate(timeout=30)[1]


@contextmanager
def running(place: Place, *options: str) -> Iterator[App]:
    """Ends with the test."""
    log = place.folder / "answers.jsonl"
    command = [sys.executable, str(CAMERA / "app.py"), "--socket", str(place.path), "--rate", "500", "--log", str(log), *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield App(process, log)
        finally:
            process.kill()


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with ExitStack() as stack:
        yield Place(tmp_path, stack)


def picture_slot(place: Place, name: str, *, side: int, version: int) -> Path:
    """A slot whose model takes pictures [1, side, side] and says whether they are brighter than a half on average."""
    weights = np.stack([np.full(side * side, 0.5 - value) for value in (1.0, 0.0)]).astype(np.float32) / side**2
    graph = helper.make_graph(
        [
            helper.make_node("Flatten", ["input"], ["flat"]),
            helper.make_node("Gemm", ["flat", "weights", "bias"], ["output"], transB=1),
        ],
        "bright",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["n", 1, side, side])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["n", 2])],
        [numpy_helper.from_array(weights, "weights"), numpy_helper.from_array(np.array([0.25, -0.25], np.float32), "bias")],
    )
    data = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8).SerializeToString()
    variant = make_variant(data)
    variant = msgspec.structs.replace(variant, input=msgspec.structs.replace(variant.input, shape=[-1, 1, side, side]))
    dark = np.zeros((1, 1, side, side), np.float32)
    made = make_release([variant], inputs=dark, outputs=np.array([[0.25, -0.25]], np.float32), version=version)
    return fill_slot(place.folder / name, made, variant=variant.name, data=data)


@pytest.mark.runtime
def test_it_goes_on_through_changes_of_models_and_tells_the_truth(place: Place) -> None:
    for label, value in (("no", 20), ("yes", 230)):
        folder = place.folder / "pictures" / label
        folder.mkdir(parents=True)
        (folder / "a.pgm").write_bytes(b"P5\n# by hand\n32 24\n255\n" + bytes([value]) * (32 * 24))
        np.save(folder / "b.npy", np.full((40, 40, 3), value, np.uint8))
    first = place.start(picture_slot(place, "A", side=28, version=1))
    second = place.start(picture_slot(place, "B", side=14, version=2), paused=True)
    with running(place, "--folder", str(place.folder / "pictures")) as app:
        app.wait_for(lambda answer: answer["version"] == 1)
        second.order(Resume())
        first.order(Drain())
        app.wait_for(lambda answer: answer["version"] == 2)  # which takes pictures of another shape
        place.start(picture_slot(place, "C", side=28, version=3))
        second.kill()
        app.wait_for(lambda answer: answer["version"] == 3)
        said = app.stop()
    answers = app.answers()
    assert app.process.returncode == 0, said
    assert [answer for answer in answers if answer["label"] != answer["truth"]] == []
    assert {answer["truth"] for answer in answers} == {"no", "yes"}
    window = first.rest()[-1]
    assert isinstance(window, InferWindow)
    asked = sum(answer["version"] == 1 for answer in answers)
    assert asked - 1 <= window.labelled == window.labelled_correct <= asked  # the last truth may have come to the next model
    assert "failed" not in said


@pytest.mark.runtime
def test_batches_of_a_synthetic_camera(place: Place) -> None:
    child = place.start(picture_slot(place, "A", side=28, version=1))
    with running(place, "--synthetic", "--batch", "8", "--count", "20") as app:
        assert app.process.wait(30) == 0
    assert len(app.answers()) == 20
    child.order(Drain())
    window = child.rest()[-1]
    assert isinstance(window, InferWindow)
    assert (window.requests, window.inputs) == (3, 20)


def test_without_an_agent_it_says_so_and_goes_on(place: Place) -> None:
    place.path.unlink()
    with running(place, "--synthetic", "--count", "2", "--timeout", "0.2") as app:
        assert app.process.wait(30) == 1
    assert ["no answer from" in answer["error"] for answer in app.answers()] == [True, True]


@pytest.mark.parametrize(
    ("came", "wanted"),
    [
        ((24, 32), (1, 28, 28)),
        ((480, 640, 3), (3, 96, 96)),
        ((480, 640, 3), (96, 96, 3)),
        ((480, 640, 3), (28, 28)),
        ((28, 28), (3, 8, 16)),
    ],
)
def test_pictures_are_made_to_fit(came: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    fitted = frames.fit(np.full(came, 0.25, np.float32), wanted)
    assert (fitted.shape, fitted.dtype, fitted.flags.c_contiguous) == (wanted, np.float32, True)
    assert (fitted == 0.25).all()


def test_the_middle_is_cut_out() -> None:
    picture = np.zeros((4, 8), np.float32)
    picture[:, 2:6] = np.arange(16).reshape(4, 4)
    assert frames.fit(picture, (2, 2)).tolist() == [[5.0, 7.0], [13.0, 15.0]]
    with pytest.raises(ValueError, match="cannot become"):
        frames.fit(picture, (2,))


def test_netpbm_files_are_read(tmp_path: Path) -> None:
    path = tmp_path / "x.ppm"
    path.write_bytes(b"P6 1 2\n# a comment\n65535\n" + np.array([0, 65535, 0, 65535, 0, 0], ">u2").tobytes())
    assert frames.read_picture(path).tolist() == [[[0, 1, 0]], [[1, 0, 0]]]
    path.write_bytes(b"P3 1 1 255 0 0 0")
    with pytest.raises(ValueError, match="netpbm"):
        frames.read_picture(path)
