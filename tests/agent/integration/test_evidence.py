"""Every kind of evidence against a model in probation, by a real process with nobody to ask: the old model serves within 5 s of it."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from tests.fakes.agent.on_trial import TrialDevice
from tests.fakes.nats_broker import wait_until
from tests.fakes.poison import ALWAYS, Behaviour, tame_images, wild_images

from covey_agent.client import Client, ClientError
from covey_contract.messages import DeploymentState as S
from covey_contract.release import Runtime

pytestmark = [pytest.mark.runtime, pytest.mark.slow]
ROLLBACK_MS = 5000


@dataclass(frozen=True)
class Case:
    """A kind of evidence."""

    name: str
    words: str  # in the reason
    strike: Callable[[TrialDevice], None]
    behaviour: Behaviour = Behaviour.CRASH
    runtime: Runtime = Runtime.ONNXRUNTIME
    settings: dict[str, object] = field(default_factory=dict)


def show(device: TrialDevice, *, times: int = 1) -> None:
    """Wild images come in, one after the other, until the model has gone; how they are answered is not the question."""
    for image in wild_images(times):
        with contextlib.suppress(ClientError), Client(device.socket, timeout_s=30) as client:
            client.infer(image)


def kill(number: int) -> Callable[[TrialDevice], None]:
    """The worker of the new model dies as native code does."""
    return lambda device: os.kill(device.newest_worker(), number)


def nothing(_: TrialDevice) -> None:
    """It shows by itself."""


CASES = [
    Case("crash", "killed by SIGFPE", show),
    Case("crash-litert", "killed by SIGSEGV", show, runtime=Runtime.LITERT),
    Case("illegal-instruction", "killed by SIGILL", kill(signal.SIGILL)),
    Case("abort", "killed by SIGABRT", kill(signal.SIGABRT)),
    Case("hang-in-a-request", "hangs: one request", show, Behaviour.HANG, settings={"INFERENCE_HANG_TIMEOUT_S": 1}),
    Case("silent", "gave no answer within 2 s", kill(signal.SIGSTOP), settings={"INFERENCE_SILENCE_TIMEOUT_S": 2}),
    Case("out-of-memory", "out of memory", show, Behaviour.HOG, settings={"INFERENCE_MEMORY_LIMIT_MB": 512}),
    Case("slow", "p95 latency", lambda device: show(device, times=24), Behaviour.SLOW, runtime=Runtime.LITERT),
    Case("nan", "outputs held NaN", lambda device: show(device, times=4), Behaviour.NAN),
    Case("constant", "different inputs in a row", lambda device: show(device, times=24), Behaviour.CONSTANT),
    Case(
        "health-hook",
        "the health hook ended with exit code 1",
        nothing,
        settings={"HEALTH_COMMAND": """sh -c 'test "$COVEY_VERSION" = 1'""", "HEALTH_INTERVAL_S": 1},
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_evidence_brings_the_old_model_back_within_seconds(tmp_path: Path, case: Case) -> None:
    with TrialDevice.make(tmp_path, case.behaviour, runtime=case.runtime, settings=case.settings) as device:
        device.start()
        striking = threading.Thread(target=case.strike, args=(device,))
        striking.start()
        machine = device.wait_for(S.ROLLED_BACK)
        with Client(device.socket, timeout_s=20) as client:
            assert client.infer(tame_images(1)[0]).version == 1
        striking.join(40)
        assert not striking.is_alive()
        assert machine.deployment is not None
        assert case.words in machine.deployment.reason
        assert machine.deployment.rollback_ms is not None
        assert machine.deployment.rollback_ms < ROLLBACK_MS
        assert [entry.digest for entry in machine.quarantine] == [device.poison]
        assert device.daemon.status()["connected"] is False


def test_wrong_golden_outputs_never_serve(tmp_path: Path) -> None:
    with TrialDevice.make(tmp_path, Behaviour.WRONG, ink=ALWAYS, state=S.VERIFYING) as device:
        device.daemon.start()
        machine = device.wait_for(S.ROLLED_BACK)
        assert machine.deployment is not None
        assert "golden check" in machine.deployment.reason
        assert [entry.digest for entry in machine.quarantine] == [device.poison]
        with Client(device.socket, timeout_s=20) as client:
            assert client.infer(tame_images(1)[0]).version == 1


def test_what_failed_is_known_after_a_power_cut_that_costs_the_database(tmp_path: Path) -> None:
    with TrialDevice.make(tmp_path) as device:
        device.start()
        show(device)
        device.wait_for(S.ROLLED_BACK)
        device.daemon.stop(signal.SIGKILL)
        for file in device.state_dir.glob("state.db*"):
            file.unlink()
        device.daemon.start()
        with Client(device.socket, timeout_s=20) as client:
            assert client.infer(tame_images(1)[0]).version == 1
        wait_until(lambda: [entry.digest for entry in device.machine().quarantine] == [device.poison], what="the quarantine")


def test_a_proven_model_whose_file_rots_gives_way_to_the_one_before(tmp_path: Path) -> None:
    with TrialDevice.make(tmp_path, ink=3.0, state=S.COMMITTED) as device:
        path = device.state_dir / "slots" / "B" / "model.onnx"
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
        device.daemon.start()
        machine = device.wait_for(S.ROLLED_BACK)
        assert machine.deployment is not None
        assert "after its probation" in machine.deployment.reason
        assert "model.onnx has digest" in machine.deployment.reason
        assert (machine.committed, machine.deployment.id) == ("A", "dep-2")
        with Client(device.socket, timeout_s=20) as client:
            assert client.infer(tame_images(1)[0]).version == 1
