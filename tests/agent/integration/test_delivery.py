"""From a signed order to a serving model and back, with nothing faked on the device: real daemon, real children, real runtime, broker."""

import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.agent.integration.device import Device
from tests.fakes.agent.daemon import Daemon, make_identity
from tests.fakes.agent.fleet import FleetServer
from tests.fakes.nats_broker import running_broker, wait_until
from tests.fakes.poison import ALWAYS, INK, Behaviour, tame_images, wild_images
from tests.fakes.services import require
from tests.fakes.tuf_repository import Director

from covey_agent.client import Client
from covey_contract.messages import DeploymentState as S

pytestmark = [pytest.mark.broker, pytest.mark.runtime, pytest.mark.slow]


class Application:
    """A program on the device that asks all the time and counts what it got."""

    def __init__(self, device: Device) -> None:
        self.answers = 0
        self.failures: list[str] = []
        self._device = device
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "Application":
        self._thread.start()
        wait_until(lambda: self.answers or self.failures, what="a first answer")
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(30)

    def _run(self) -> None:
        image = tame_images(1)[0]
        with Client(self._device.socket, timeout_s=30) as client:
            while not self._stop.wait(0.005):
                try:
                    client.infer(image)
                    self.answers += 1
                except Exception as exc:  # noqa: BLE001 - whatever an application sees is what this counts
                    self.failures.append(repr(exc))


def test_release_is_fetched_checked_activated_and_committed(device: Device) -> None:
    report = device.commit_first()
    assert (report.active_slot, report.serving) == ("A", True)
    assert report.deployment is not None
    assert report.deployment.variant == "onnx-float32"
    assert report.deployment.variant_reason
    with Application(device) as application:
        deployment = device.server.order(device.server.publish_release(2, Behaviour.CRASH, ink=3.0))
        report = device.server.wait_for(deployment, S.COMMITTED)
    assert report.active_slot == "B"
    assert application.answers > 0
    assert application.failures == [], "no request was refused while the worker changed"


@pytest.mark.parametrize("behaviour", [Behaviour.CRASH_AT_LOAD, Behaviour.WRONG], ids=lambda behaviour: behaviour.value)
def test_poison_that_the_check_sees_never_serves(device: Device, behaviour: Behaviour) -> None:
    device.commit_first()
    with Application(device) as application:
        deployment = device.server.order(device.server.publish_release(2, behaviour, ink=ALWAYS))
        report = device.server.wait_for(deployment, S.ROLLED_BACK)
    assert (report.active_slot, report.serving) == ("A", True)
    assert len(report.quarantine) == 1
    assert application.failures == []
    again = device.server.order(device.server.publish_release(2, behaviour, ink=ALWAYS))
    assert "quarantine" in (device.server.wait_for(again, S.REFUSED).deployment or report.deployment).reason  # type: ignore[union-attr]  # it has one


def test_poison_that_strikes_on_live_input_is_rolled_back_within_seconds(device: Device) -> None:
    device.commit_first()
    deployment = device.server.order(device.server.publish_release(2, Behaviour.CRASH, ink=INK), probation_s=60)
    device.server.wait_for(deployment, S.PROBATION)
    with Client(device.socket, timeout_s=30) as client:
        client.infer(wild_images(1)[0])
    report = device.server.wait_for(deployment, S.ROLLED_BACK)
    assert report.deployment is not None
    assert report.deployment.rollback_ms is not None
    assert report.deployment.rollback_ms < 5000
    assert "killed by" in report.deployment.reason
    assert report.active_slot == "A"


def test_a_connection_that_is_lost_in_probation_brings_the_old_model_back(device: Device) -> None:
    device.daemon.stop()
    device.daemon.environment = {"COVEY_AGENT_INFERENCE_CONTROL_LOSS_S": "2"}
    device.daemon.start()
    device.commit_first()
    deployment = device.server.order(device.server.publish_release(2, ink=3.0), probation_s=60)
    device.server.wait_for(deployment, S.PROBATION)
    device.broker.process.stop(signal.SIGKILL)
    with Client(device.socket, timeout_s=30) as client:
        wait_until(lambda: client.infer(tame_images(1)[0]).version == 1, what="the old model, with nobody to ask")
    device.broker.process.start()
    report = device.server.wait_for(deployment, S.ROLLED_BACK)
    assert report.deployment is not None
    assert "connection to the server" in report.deployment.reason
    assert report.quarantine == [], "networks fail by themselves"


def test_forged_order_is_refused_and_a_true_one_still_obeyed(device: Device) -> None:
    device.commit_first()
    forged = device.server.order(device.server.publish_release(2, ink=3.0), director=Director())
    report = device.server.wait_for(forged, S.REFUSED)
    assert report.active_slot == "A"
    true = device.server.order(device.server.publish_release(3, ink=4.0))
    assert device.server.wait_for(true, S.COMMITTED).active_slot == "B"


@pytest.mark.parametrize("state", [S.FETCHING, S.VERIFYING, S.PROBATION], ids=lambda state: state.value)
def test_kill_9_in_mid_deployment_is_survived(device: Device, state: S) -> None:
    device.commit_first()
    deployment = device.server.order(device.server.publish_release(2, ink=3.0), probation_s=4)
    device.server.wait_for(deployment, state)
    device.daemon.stop(signal.SIGKILL)
    device.daemon.start()
    report = device.server.wait_for(deployment, S.COMMITTED)
    assert (report.active_slot, report.serving) == ("B", True)
    with Client(device.socket, timeout_s=20) as client:
        client.infer(tame_images(1)[0])


def test_every_step_of_the_history_arrives_as_a_reading(device: Device) -> None:
    device.commit_first()

    def states() -> list[object]:
        readings = [reading for _, reading in sorted(device.server.heard.readings.items())]
        return [reading.values["state"] for reading in readings if reading.kind == "deployment"]

    expected = ["fetching", "verifying", "staged", "activating", "probation", "committed"]
    wait_until(lambda: states() == expected, what=f"the whole history, got {states()}")


@pytest.fixture
def small_device(tmp_path: Path) -> Iterator[Device]:
    """A device whose state lies on a file system of its own with 24 MiB."""
    require(os.geteuid() == 0, "root, to mount a file system")
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(small)], check=True)
    try:
        with running_broker(tmp_path / "server", devices=["cam-1"]) as broker, FleetServer(broker, "cam-1") as server:
            make_identity(small / "state", broker, "cam-1")
            server.repository.enrol(small / "state")
            daemon = Daemon(small / "state", {"COVEY_AGENT_DEPLOY_RESERVE_MB": "16"})
            daemon.start()
            yield Device(daemon, server, broker)
            daemon.stop(signal.SIGKILL)
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)


def test_a_device_without_room_says_so_and_goes_on_by_itself_when_there_is(small_device: Device) -> None:
    device = small_device
    filler = device.daemon.state_dir.parent / "somebody elses file"
    filler.write_bytes(bytes(12 * 2**20))
    deployment = device.server.order(device.server.publish_release(1))

    def is_told() -> bool:
        reports = [report.deployment for report in device.server.heard.reported if report.deployment]
        return any(report.deployment == deployment and report.state is S.FETCHING and "no room" in report.reason for report in reports)

    wait_until(is_told, what="a report that says what lacks", timeout_s=60)
    assert device.server.sent == []
    filler.unlink()
    report = device.server.wait_for(deployment, S.COMMITTED, timeout_s=90)
    assert report.deployment is not None
    assert report.deployment.reason == ""
    assert report.quarantine == []
