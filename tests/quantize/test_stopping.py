"""A pipeline that is stopped in the middle leaves no process and no result behind."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import numpy as np
import psutil
import pytest
from tests.fakes.poison import Behaviour, poison_file

from covey_contract.release import Runtime
from covey_quantize.request import QuantizeRequest

pytestmark = pytest.mark.runtime


def _start_hanging(folder: Path) -> tuple[subprocess.Popen[bytes], psutil.Process]:
    """A worker whose measuring child will never end, and that child."""
    (folder / "model.onnx").write_bytes(poison_file(Behaviour.HANG, Runtime.ONNXRUNTIME))
    np.savez(folder / "data.npz", x=np.zeros((4, 1, 28, 28), np.float32))
    request = QuantizeRequest(model=str(folder / "model.onnx"), calibration=str(folder / "data.npz"), out=str(folder / "out"))
    worker = subprocess.Popen([sys.executable, "-m", "covey_quantize.worker"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    assert worker.stdin is not None
    worker.stdin.write(msgspec.json.encode(request) + b"\n")
    worker.stdin.close()
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for child in psutil.Process(worker.pid).children():
            if child.cpu_times().user > 0.5:  # past its start, so that it watches its parent
                return worker, child
        time.sleep(0.05)
    worker.kill()
    raise AssertionError("the measuring child never started")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_its_children_end_with_it(tmp_path: Path, number: signal.Signals) -> None:
    if number == signal.SIGKILL and sys.platform != "linux":
        pytest.skip("only Linux tells a child that its parent was killed")
    worker, child = _start_hanging(tmp_path)
    worker.send_signal(number)
    worker.wait(timeout=20)
    _, alive = psutil.wait_procs([child], timeout=20)
    assert alive == []
    assert not (tmp_path / "out").exists()
    if number == signal.SIGTERM:
        assert sorted(path.name for path in tmp_path.iterdir()) == ["data.npz", "model.onnx"]
