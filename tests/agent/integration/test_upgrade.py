"""The agent upgrades itself, for real: real wheels, pip, the launcher, the daemon and its broker. Afterwards the new version runs, or the
old one does and the server knows why."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.agent.integration.device import Device
from tests.fakes.agent.daemon import Daemon, make_identity
from tests.fakes.agent.fleet import FleetServer
from tests.fakes.agent_wheel import CRASHES, HANGS, REFUSES, build_wheel, digest_of_file
from tests.fakes.nats_broker import running_broker, wait_until
from tests.fakes.poison import tame_images

from covey_agent import __version__
from covey_agent.adapters.lock import find_holder
from covey_agent.cli import main
from covey_agent.client import Client
from covey_agent.versions import Versions, begin_trial
from covey_agent.versions_file import VersionsFile

pytestmark = [pytest.mark.broker, pytest.mark.slow]
QUICK = {
    "COVEY_LAUNCH_START_S": "60",
    "COVEY_LAUNCH_SETTLE_S": "1",
    "COVEY_LAUNCH_PAUSE_S": "0.1",
    "COVEY_LAUNCH_CONNECT_S": "120",
    "COVEY_LAUNCH_MAX_STARTS": "2",
}
NEXT = "9.9.9"


@pytest.fixture
def launched(tmp_path: Path) -> Iterator[Device]:
    """A connected agent that the launcher started; a broken one is ended whatever a test left."""
    with running_broker(tmp_path / "server", devices=["cam-1"]) as broker, FleetServer(broker, "cam-1") as server:
        make_identity(tmp_path / "state", broker, "cam-1")
        server.repository.enrol(tmp_path / "state")
        daemon = Daemon(tmp_path / "state", environment=dict(QUICK), module="covey_agent.launch")
        daemon.start()
        device = Device(daemon, server, broker)
        try:
            wait_until(lambda: device.server.heard.reported, what="the agent to report", timeout_s=90)
            yield device
        finally:
            daemon.stop(signal.SIGTERM)


@pytest.fixture(scope="module")
def staged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The environment of NEXT, made by the real command once: a bad version is this one, spoilt."""
    folder = tmp_path_factory.mktemp("staged")
    wheel = build_wheel(folder, NEXT)
    (folder / "SHA256SUMS").write_text(f"{digest_of_file(wheel)}  {wheel.name}\n")
    command = [sys.executable, "-m", "covey_agent.cli", "upgrade", str(folder), "--sha256", digest_of_file(folder / "SHA256SUMS")]
    done = subprocess.run([*command, "--state-dir", str(folder), "--json"], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["version"] == NEXT
    return VersionsFile(folder).path(NEXT)


def put_on_trial(device: Device, staged: Path, sabotage: str = "") -> None:
    """What `covey-agent upgrade` does, from an environment that was made before."""
    file = VersionsFile(device.daemon.state_dir)
    shutil.copytree(staged, file.path(NEXT), symlinks=True)
    with next(file.path(NEXT).glob("lib/python3*/site-packages/covey_agent/commands/run.py")).open("a") as module:
        module.write(f"\n\n{sabotage}\n")
    file.change(lambda versions: begin_trial(versions, NEXT, was_connected=True))
    os.kill(device.daemon.pid, signal.SIGHUP)


def upgrade(device: Device, wheel: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "covey_agent.cli", "upgrade", str(wheel), "--sha256", digest_of_file(wheel)]
    command += ["--state-dir", str(device.daemon.state_dir), "--json", *options]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def versions_heard(device: Device) -> list[str]:
    return [report.agent_version for report in device.server.heard.reported]


def boots(device: Device) -> list[str]:
    return list(dict.fromkeys(report.boot for report in device.server.heard.reported))


def test_a_good_version_replaces_the_old_one_and_keeps_its_state(launched: Device, tmp_path: Path) -> None:
    launched.commit_first()
    first = launched.daemon.pid
    done = upgrade(launched, build_wheel(tmp_path, NEXT))
    assert done.returncode == 0, done.stderr
    file = VersionsFile(launched.daemon.state_dir)
    wait_until(
        lambda: file.load().current == NEXT and file.load().trial is None,
        what=f"the version to be proven: {launched.daemon.log()}",
        timeout_s=90,
    )
    wait_until(lambda: versions_heard(launched)[-1] == NEXT, what="a report of the new version", timeout_s=90)
    report = launched.server.heard.reported[-1]
    assert report.serving
    assert report.desired_generation == 1
    with Client(launched.socket) as client:
        assert client.infer(tame_images(1)[0]).version == 1
    assert launched.daemon.pid == first, "the service's main process stays the same"
    assert find_holder(launched.daemon.state_dir / "agent.lock") != first, "while it is on trial it is a child"
    assert launched.daemon.stop() == 0

    launched.daemon.start()  # from now on it is the main process itself
    wait_until(
        lambda: find_holder(launched.daemon.state_dir / "agent.lock") == launched.daemon.pid, what="the agent in place of the launcher"
    )
    assert NEXT in Path(f"/proc/{launched.daemon.pid}/cmdline").read_text()
    status = launched.daemon.status()
    assert (status["agent_version"], status["state"]) == (NEXT, "committed")
    again = upgrade(launched, tmp_path / f"covey-{NEXT}-py3-none-any.whl")
    assert (again.returncode, "is current already" in again.stderr) == (3, True)

    command = [sys.executable, "-m", "covey_agent.cli", "upgrade", "--back", "--state-dir", str(launched.daemon.state_dir)]
    subprocess.run(command, check=True, capture_output=True)
    wait_until(
        lambda: file.load().current == "" and file.load().trial is None, what="the first installation to be proven again", timeout_s=90
    )
    assert versions_heard(launched)[-1] == __version__
    assert upgrade(launched, tmp_path / f"covey-{NEXT}-py3-none-any.whl", "--no-restart").returncode == 0
    assert (file.load().current, file.load().previous) == (NEXT, ""), "it was still there"


def test_what_one_falls_back_to_is_not_replaced(staged: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = VersionsFile(tmp_path / "state")
    file.change(lambda _: Versions(current="1.0", previous=NEXT))
    shutil.copytree(staged, file.path(NEXT), symlinks=True)
    wheel = build_wheel(tmp_path, NEXT, run="x = 1")
    assert order(tmp_path / "state", wheel, digest_of_file(wheel)) == 3
    assert "made from another file" in capsys.readouterr().err
    assert order(tmp_path / "state", staged.parents[1], digest_of_file(staged.parents[1] / "SHA256SUMS")) == 0
    assert file.load().current == NEXT


@pytest.mark.parametrize(
    ("sabotage", "starts", "words"),
    [(CRASHES, 2, "it ended with exit code 1"), (HANGS, 2, "it was not ready within 3 s"), (REFUSES, 1, "it ended with exit code 2")],
    ids=["crashes", "hangs", "refuses"],
)
def test_a_version_that_does_not_start_gives_way_to_the_old_one(
    launched: Device, staged: Path, tmp_path: Path, sabotage: str, starts: int, words: str
) -> None:
    if sabotage == HANGS:
        launched.daemon.stop()
        launched.daemon.environment["COVEY_LAUNCH_START_S"] = "3"
        launched.daemon.start()
        wait_until(lambda: len(boots(launched)) == 2, what="the agent with other limits", timeout_s=90)
    before = boots(launched)
    put_on_trial(launched, staged, sabotage)
    file = VersionsFile(launched.daemon.state_dir)
    wait_until(lambda: NEXT in file.load().failed, what=f"the version to be given up: {launched.daemon.log()}", timeout_s=90)
    wait_until(lambda: len(boots(launched)) > len(before), what="the old version to report again", timeout_s=90)
    assert set(versions_heard(launched)) == {__version__}
    assert words in file.load().failed[NEXT]
    assert launched.daemon.log().count(f"version {NEXT} is on trial, start") == starts

    def alarms() -> list[object]:
        readings = list(launched.server.heard.readings.values())
        return [one.values["detail"] for one in readings if one.kind == "alarm" and one.values["what"] == "agent-upgrade"]

    wait_until(alarms, what="the server to be told", timeout_s=90)
    assert [words in str(detail) and NEXT in str(detail) for detail in alarms()] == [True]
    refused = upgrade(launched, build_wheel(tmp_path, NEXT))
    assert (refused.returncode, "failed here before" in refused.stderr) == (3, True)
    assert launched.daemon.status()["upgrade"] == {
        "current": "",
        "previous": "",
        "on_trial": False,
        "starts": 0,
        "failed": file.load().failed,
    }


def test_a_version_that_cannot_connect_any_more_gives_way(launched: Device, staged: Path) -> None:
    """It is healthy in every other way, so only the loss of what worked before tells."""
    cut_off = "import covey_agent.adapters.mqtt_paho as paho\npaho.PahoBroker.start = lambda self: None  # type: ignore[method-assign]"
    launched.daemon.stop()
    launched.daemon.environment["COVEY_LAUNCH_CONNECT_S"] = "2"
    launched.daemon.environment["COVEY_LAUNCH_MAX_STARTS"] = "1"
    launched.daemon.start()
    wait_until(lambda: len(boots(launched)) == 2, what="the agent with other limits", timeout_s=90)
    put_on_trial(launched, staged, cut_off)
    wait_until(lambda: len(boots(launched)) == 3, what=f"the old version again: {launched.daemon.log()}", timeout_s=90)
    assert "did not connect within 2 s" in VersionsFile(launched.daemon.state_dir).load().failed[NEXT]


def test_a_stop_and_a_second_agent_say_nothing_about_a_version(launched: Device, staged: Path) -> None:
    launched.daemon.environment["COVEY_LAUNCH_SETTLE_S"] = "600"
    launched.daemon.stop()
    launched.daemon.start()
    wait_until(lambda: len(boots(launched)) == 2, what="the agent with other limits", timeout_s=90)
    put_on_trial(launched, staged)
    file = VersionsFile(launched.daemon.state_dir)
    wait_until(lambda: versions_heard(launched)[-1] == NEXT, what="the version on trial", timeout_s=90)
    state = str(launched.daemon.state_dir)
    second = subprocess.run([sys.executable, "-m", "covey_agent.launch", "run", "--state-dir", state], capture_output=True, check=False)
    assert second.returncode == 6
    assert launched.daemon.stop() == 0
    trial = file.load().trial
    assert trial is not None
    assert trial.starts == 0


def test_settings_that_the_new_version_refuses_are_found_before_the_switch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refuses = "\ndef load_settings(*_: object) -> Settings:\n    raise UsageError('no such key')"
    wheel = build_wheel(tmp_path, NEXT, settings=refuses)
    (tmp_path / "state").mkdir()
    assert order(tmp_path / "state", wheel, digest_of_file(wheel)) == 3
    assert "no such key" in capsys.readouterr().err
    file = VersionsFile(tmp_path / "state")
    assert not file.path(NEXT).exists()
    assert file.load().current == ""


def test_files_that_are_not_what_the_digest_says_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wheel, state = build_wheel(tmp_path, NEXT), tmp_path / "state"
    state.mkdir()
    (tmp_path / "SHA256SUMS").write_text(f"{'0' * 64}  {wheel.name}\n")
    for source, sha256, words in [
        (wheel, "0" * 64, "was expected"),
        (wheel, "xyz", "--sha256"),
        (tmp_path, "0" * 64, "was expected"),
        (tmp_path, digest_of_file(tmp_path / "SHA256SUMS"), f"{wheel} has the digest"),
        (state, "0" * 64, "cannot copy"),
    ]:
        assert order(state, source, sha256) in {2, 3}
        assert words in capsys.readouterr().err
    assert list((state / "agent").glob("[0-9]*")) == []


def order(state_dir: Path, source: Path, sha256: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["upgrade", str(source), "--sha256", sha256, "--state-dir", str(state_dir)])
    return int(ended.value.code or 0)
