"""An upgrade that is killed at every change of the disk, of the command that switches and of the launcher that tries: old or new runs.

The commands are the real ones and die by real signals; the versions are small programs that speak the agent's signs of life, because what
is tried here is the switch. Real versions: tests/agent/integration/test_upgrade.py.
"""

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.fakes.agent_wheel import digest_of_file
from tests.fakes.nats_broker import wait_until
from tests.fakes.services import require
from tests.faults.shim import Control, Kind, Mode, Point, compile_shim

from covey_agent.versions import Versions, begin_trial
from covey_agent.versions_file import VersionsFile

pytestmark = [pytest.mark.slow]
OLD, NEW = "1.0.0", "2.0.0"
SEED = int(os.environ.get("COVEY_KILL_SEED", time.time() // 86400))  # which mode a point gets; changes daily
MODES = (Mode.KILL_BEFORE, Mode.KILL_AFTER, Mode.KILL_TORN)
QUICK = {
    "COVEY_LAUNCH_START_S": "30",
    "COVEY_LAUNCH_SETTLE_S": "0.05",
    "COVEY_LAUNCH_SILENCE_S": "30",
    "COVEY_LAUNCH_PAUSE_S": "0.01",
}
# In place of a version's interpreter: notes that it was started, is healthy unless told otherwise, and ends when asked to.
VERSION = """#!{python} -S
import os, pathlib, signal, socket, sys, time
own = pathlib.Path(sys.argv[0]).absolute().parents[1]
state = own.parents[1]
with (state / "started").open("a") as file:
    file.write(own.name + "\\n")
if own.name == "2.0.0" and (state / "bad").exists():
    sys.exit(1)
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
address = os.environ.get("NOTIFY_SOCKET", "")
while True:
    if address:
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(b"READY=1", "\\0" + address[1:])
    time.sleep(0.02)
"""
# The real command, but for the programs that make and fill the environment, which take seconds and are not what is tried.
UPGRADE = """
import os, pathlib, shutil
from covey_agent.service import staging
def run(command, what, timeout_s=0.0):
    if what == "make an environment":
        target = pathlib.Path(command[-1])
        (target / "lib/python3/site-packages").mkdir(parents=True)
        (target / "bin").mkdir()
        shutil.copy(os.environ["VERSION"], target / "bin" / "python")
    return "covey-agent 2.0.0" if what == "start it" else ""
staging._run = run
from covey_agent.cli import main
"""
LAUNCH = "from covey_agent.launch import main\n"
BEGIN = """
import ctypes, os
ctypes.CDLL(os.environ["LD_PRELOAD"]).covey_shim_begin(os.environ["CONTROL"].encode(), b"upgrade", 1)
main()
"""


@dataclass(frozen=True)
class Bench:
    """A folder with a device in it, made anew for each case."""

    folder: Path
    shim: Path

    @property
    def state_dir(self) -> Path:
        return self.folder / "state"

    @property
    def file(self) -> VersionsFile:
        return VersionsFile(self.state_dir)

    def reset(self, *, trial: bool, bad: bool = False) -> Control:
        """A device that runs OLD; with `trial`, one that was just switched to NEW."""
        shutil.rmtree(self.state_dir, ignore_errors=True)
        self.file.change(lambda _: Versions(current=OLD))
        for version in (OLD, *([NEW] if trial else [])):
            python = self.file.python(version)
            python.parent.mkdir(parents=True)
            shutil.copy(self.folder / "version", python)
        if trial:
            self.file.change(lambda versions: begin_trial(versions, NEW, was_connected=False))
        if bad:
            (self.state_dir / "bad").touch()
        (self.folder / "log").unlink(missing_ok=True)
        return Control(self.folder / "control", folder=self.state_dir, log=self.folder / "log")

    def start(self, program: str, *words: str, shimmed: bool = True) -> "subprocess.Popen[bytes]":
        environment = os.environ | QUICK | {"VERSION": str(self.folder / "version")}
        if shimmed:
            environment |= {"LD_PRELOAD": str(self.shim), "CONTROL": str(self.folder / "control")}
        code = program + (BEGIN if shimmed else "main()\n")
        command = [sys.executable, "-c", code, *words, "--state-dir", str(self.state_dir)]
        return subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)

    def upgrade(self, *, shimmed: bool = True) -> int:
        wheel = self.folder / f"covey-{NEW}-py3-none-any.whl"
        return self.start(UPGRADE, "upgrade", str(wheel), "--sha256", digest_of_file(wheel), shimmed=shimmed).wait(60)

    def started(self) -> list[str]:
        path = self.state_dir / "started"
        return path.read_text().split() if path.exists() else []

    def live(self) -> str:
        """Start the device as its service would, until it rests; the version that then runs."""
        before = len(self.started())
        with self.start(LAUNCH, "run", shimmed=False) as launcher:
            try:
                wait_until(lambda: len(self.started()) > before and self.file.load().trial is None, what="the trial to end", timeout_s=60)
                current = self.file.load().current
                wait_until(lambda: self.started()[-1] == current, what=f"{current} to run", timeout_s=60)
                assert launcher.poll() is None
            finally:
                launcher.send_signal(signal.SIGTERM)
                launcher.wait(60)
        return current


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    require(shutil.which("cc"), "a C compiler (gcc, libc6-dev)")
    folder = tmp_path_factory.mktemp("upgrades")
    (folder / "version").write_text(VERSION.format(python=sys.executable))
    (folder / "version").chmod(0o755)
    (folder / f"covey-{NEW}-py3-none-any.whl").write_bytes(b"x" * 1000)
    return Bench(folder, compile_shim(folder))


def test_a_switch_that_is_killed_anywhere_leaves_old_or_new(bench: Bench) -> None:
    control = bench.reset(trial=False)
    assert bench.upgrade() == 0
    points = control.points()
    assert len(points) >= 15
    ran = set()
    for index, point in enumerate(points):
        if "versions" not in point.path and (index + SEED) % 2:
            continue  # what only prepares takes turns by the day
        mode = MODES[(index // 2 + SEED) % len(MODES)]
        control = bench.reset(trial=False)
        control.arm(point, mode)
        assert bench.upgrade() == -signal.SIGKILL, f"{point} was not reached"
        assert bench.file.load().current in {OLD, NEW}, f"{mode.name} {point}"
        current = bench.live()
        ran.add(current)
        assert bench.upgrade(shimmed=False) == (3 if current == NEW else 0), f"{mode.name} {point}: a second order"
        assert bench.file.load().current == NEW
    assert ran == {OLD, NEW}, "kills before the switch and after it"


@pytest.mark.parametrize("bad", [False, True], ids=["good", "bad"])
def test_a_trial_that_is_killed_anywhere_comes_to_the_same_end(bench: Bench, bad: bool) -> None:
    control = bench.reset(trial=True, bad=bad)
    points = _points_of_trial(bench, control)
    assert {point.call for point in points} >= {"create", "write", "fsync", "rename"}
    for index, point in enumerate(points):
        if point.call != "rename" and (index + SEED) % 2:
            continue
        mode = MODES[(index // 2 + SEED) % len(MODES)]
        control = bench.reset(trial=True, bad=bad)
        control.arm(point, mode)
        assert bench.start(LAUNCH, "run").wait(60) == -signal.SIGKILL, f"{point} was not reached"
        assert bench.live() == (OLD if bad else NEW), f"{mode.name} {point}"
        assert (NEW in bench.file.load().failed) is bad
        assert bench.started().count(NEW) <= 4


def test_a_full_disk_brings_the_old_version_and_then_the_trial_goes_on(bench: Bench) -> None:
    """A start that cannot be counted is not made: on a version that takes the machine down it might be one of very many."""
    control = bench.reset(trial=True)
    control.arm(None, Mode.FAIL_FROM, error=errno.ENOSPC, kinds=Kind.WRITES | Kind.CREATES)
    with bench.start(LAUNCH, "run") as launcher:
        wait_until(lambda: bench.started() == [OLD], what="the old version to run")
        launcher.send_signal(signal.SIGTERM)
        launcher.wait(60)
    assert bench.file.load().trial is not None
    assert bench.live() == NEW


def _points_of_trial(bench: Bench, control: Control) -> list[Point]:
    with bench.start(LAUNCH, "run") as launcher:
        wait_until(lambda: bench.file.load().trial is None and bench.started()[-1] == bench.file.load().current, what="the trial to end")
        launcher.send_signal(signal.SIGTERM)
        launcher.wait(60)
    return control.points()
