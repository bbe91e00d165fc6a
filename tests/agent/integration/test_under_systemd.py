"""The whole service under a real systemd: installed by the command, sandboxed as shipped, watched, restarted, logged, taken away."""

import json
import os
import secrets
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.fakes.agent.daemon import descendants, make_identity
from tests.fakes.agent.fleet import FleetServer
from tests.fakes.agent_wheel import CRASHES, build_wheel
from tests.fakes.nats_broker import running_broker, wait_until
from tests.fakes.poison import tame_images
from tests.fakes.systemd import Systemd, running_systemd

from covey_agent.client import Client
from covey_agent.versions_file import VersionsFile
from covey_contract.messages import DeploymentState as S
from covey_contract.messages import Outcome, Reply, UpgradeAgent

pytestmark = [pytest.mark.broker, pytest.mark.runtime, pytest.mark.slow]
UNIT = "covey-agent.service"
STATE = "var/lib/covey-agent"
WATCHDOG_S = 12
# All that a test changes: the program lies where this tree lies, which may be a home or a temporary folder, and some waits are shorter.
BESIDE = """
[Service]
ProtectHome=tmpfs
BindReadOnlyPaths={places}
WatchdogSec={watchdog}
Environment=COVEY_LAUNCH_SETTLE_S=1 COVEY_LAUNCH_PAUSE_S=0.1 COVEY_LAUNCH_MAX_STARTS=2
"""


@dataclass(frozen=True, slots=True)
class Machine:
    """A machine with the service on it."""

    systemd: Systemd
    server: FleetServer

    @property
    def state_dir(self) -> Path:
        """Seen from here."""
        return self.systemd.root / STATE

    @property
    def pid(self) -> int:
        """The service's main process, seen from here."""
        return next(pid for pid in descendants(self.systemd.pid) if namespaced_pid(pid) == self.systemd.show(UNIT, "MainPID"))

    def agent(self, *words: str) -> str:
        """The `covey-agent` command, given by root."""
        return self.systemd.run(sys.executable, "-m", "covey_agent.cli", *words)


def namespaced_pid(pid: int) -> str:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(line for line in lines if line.startswith("NSpid:")).split()[-1]


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    folder = tmp_path_factory.mktemp("service")
    with (
        running_systemd() as systemd,
        running_broker(folder / "server", devices=["cam-1"]) as broker,
        FleetServer(broker, "cam-1") as server,
    ):
        launcher = folder / "covey-agent-launch"
        launcher.write_text(f"#!{sys.executable}\nfrom covey_agent.launch import main\n\nmain()\n")
        launcher.chmod(0o755)
        folder.chmod(0o755)
        roots = [Path(__file__).parents[3], Path(sys.prefix), Path(sys.base_prefix), folder, *map(Path, sys.path)]
        places = sorted({str(path) for path in roots if path.is_dir()})
        systemd.add_unit(f"{UNIT}.d/test.conf", BESIDE.format(places=" ".join(places), watchdog=WATCHDOG_S))
        machine = Machine(systemd, server)
        machine.agent("install", "--no-trains", "--launcher", str(launcher))  # the strictest sandbox, whatever is installed here
        make_identity(machine.state_dir, broker, "cam-1")
        server.repository.enrol(machine.state_dir)
        owner = machine.state_dir.stat()
        for path in machine.state_dir.rglob("*"):
            os.chown(path, owner.st_uid, owner.st_gid)
        systemd.run("systemctl", "start", UNIT)
        server.wait_for(server.order(server.publish_release(1)), S.COMMITTED)
        yield machine


def test_it_serves_both_runtimes_from_within_the_sandbox(machine: Machine) -> None:
    assert machine.systemd.show(UNIT, "ActiveState") == "active"
    server = machine.server
    with Client(str(machine.state_dir / "run" / "infer.sock")) as client:
        assert client.infer(tame_images(1)[0]).version == 1
    wait_until(lambda: server.heard.reported[-1].capabilities.runtimes, what="the probe's answer", timeout_s=90)
    assert {"onnxruntime", "litert"} <= set(server.heard.reported[-1].capabilities.runtimes), "tried, not only found"
    assert machine.systemd.show(UNIT, "StatusText") == "connected; slot A serves"
    agents = [pid for pid in descendants(machine.systemd.pid) if "covey_agent" in Path(f"/proc/{pid}/cmdline").read_text()]
    assert len(agents) >= 2, "the agent and its worker"
    for pid in agents:
        status = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line)
        assert (status["Seccomp"], status["NoNewPrivs"], int(status["CapEff"], 16), int(status["CapBnd"], 16)) == ("2", "1", 0, 0)
        assert status["Uid"].split()[0] == str(machine.state_dir.stat().st_uid) != "0"


def test_no_memory_is_both_written_and_run(machine: Machine) -> None:
    assert machine.systemd.show(UNIT, "MemoryDenyWriteExecute") == "yes"
    for pid in [machine.pid, *descendants(machine.pid)]:
        assert not [line for line in Path(f"/proc/{pid}/maps").read_text().splitlines() if line.split()[1].startswith("rwx")]


def test_children_cannot_speak_for_the_service(machine: Machine) -> None:
    children = [pid for pid in descendants(machine.pid) if pid != machine.pid]
    assert children
    assert not any(b"NOTIFY_SOCKET" in Path(f"/proc/{pid}/environ").read_bytes() for pid in children)


def test_only_the_group_reaches_the_local_api_and_nobody_the_keys(machine: Machine) -> None:
    group = machine.state_dir.stat().st_gid

    def may(test: str, path: str, *, gid: int) -> bool:
        who = ["setpriv", "--reuid", "65534", "--regid", str(gid), "--clear-groups"]
        return machine.systemd.run(*who, "sh", "-c", f"test {test} /{STATE}/{path} && echo yes", check=False) == "yes\n"

    assert may("-w", "run/infer.sock", gid=group)
    assert not may("-w", "run/infer.sock", gid=65534)
    for path in ("slots/A/model.onnx", "state.db", "agent.lock", "."):
        assert not may("-r", path, gid=group)


def test_a_stuck_event_loop_is_ended_and_the_service_comes_back(machine: Machine) -> None:
    before, restarts = machine.pid, int(machine.systemd.show(UNIT, "NRestarts"))
    os.kill(before, signal.SIGSTOP)
    wait_until(lambda: int(machine.systemd.show(UNIT, "NRestarts")) == restarts + 1, what="systemd to end it", timeout_s=90)
    wait_until(lambda: machine.systemd.show(UNIT, "ActiveState") == "active", what="the service to be ready again", timeout_s=90)
    assert machine.pid != before
    with Client(str(machine.state_dir / "run" / "infer.sock"), timeout_s=30) as client:
        assert client.infer(tame_images(1)[0]).version == 1


def test_the_journal_has_what_it_wrote_with_levels(machine: Machine) -> None:
    entries = [json.loads(line) for line in machine.agent("logs", "--json", "-n", "1000").splitlines()]
    connected = [entry for entry in entries if "connected to the broker" in entry["message"]]
    assert {entry["priority"] for entry in connected} == {6}
    assert {entry["priority"] for entry in entries if "Watchdog timeout" in entry["message"]} <= {3, 4}
    assert "connected to the broker" in machine.agent("logs", "-n", "1000")


def test_commands_of_root_leave_nothing_that_the_service_cannot_read(machine: Machine) -> None:
    machine.agent("policy", "set-budget", "digits", "3", "--delta", "1e-5")
    assert (machine.state_dir / "agent.toml").stat().st_uid == machine.state_dir.stat().st_uid
    assert json.loads(machine.agent("status", "--json"))["connected"]


def test_the_agent_upgrades_itself_from_within_the_sandbox_and_back(machine: Machine, tmp_path: Path) -> None:
    before = machine.pid
    good = order_upgrade(machine, build_wheel(tmp_path, "9.9.8"))
    assert good.outcome is Outcome.DONE, good.reason
    wait_until(lambda: machine.server.heard.reported[-1].agent_version == "9.9.8", what="the new version to report", timeout_s=90)
    file = VersionsFile(machine.state_dir)
    wait_until(lambda: file.load().trial is None, what="it to be proven", timeout_s=90)
    assert (file.load().current, machine.pid) == ("9.9.8", before), "systemd sees one service that never ended"
    machine.systemd.run("systemctl", "restart", UNIT)  # the launcher is gone from now on
    assert "/agent/9.9.8/bin/python" in Path(f"/proc/{machine.pid}/cmdline").read_text()

    bad = order_upgrade(machine, build_wheel(tmp_path, "9.9.9", run=CRASHES))
    assert bad.outcome is Outcome.DONE, bad.reason
    wait_until(lambda: file.load().failed.get("9.9.9"), what="the version to be given up", timeout_s=90)
    wait_until(lambda: json.loads(machine.agent("status", "--json"))["connected"], what="the proven version to be back", timeout_s=90)
    assert json.loads(machine.agent("status", "--json"))["agent_version"] == "9.9.8"
    assert machine.systemd.show(UNIT, "ActiveState") == "active"
    with Client(str(machine.state_dir / "run" / "infer.sock"), timeout_s=30) as client:
        assert client.infer(tame_images(1)[0]).version == 1


def order_upgrade(machine: Machine, wheel: Path) -> Reply:
    digest, ident = machine.server.publish_agent(wheel), f"upg-{secrets.token_hex(4)}"
    expires_at = int(time.time() * 1000) + 600_000
    version = wheel.name.split("-")[1]
    machine.server.command(UpgradeAgent(id=ident, device="cam-1", expires_at=expires_at, version=version, digest=digest))

    def found() -> list[Reply]:
        return [reply for reply in machine.server.heard.replies if reply.id == ident]

    wait_until(found, what="the answer", timeout_s=90)
    return found()[0]


def test_a_device_that_was_decommissioned_stays_down_without_a_failure(machine: Machine) -> None:
    machine.systemd.run("systemctl", "stop", UNIT)
    note = machine.state_dir / "decommissioned.json"
    note.write_text('{"device": "cam-1", "command": "c", "at": 1, "wipe": false}')
    os.chown(note, machine.state_dir.stat().st_uid, machine.state_dir.stat().st_gid)
    machine.systemd.run("systemctl", "start", UNIT, check=False)
    wait_until(lambda: machine.systemd.show(UNIT, "ActiveState") == "inactive", what="the service to stay down", timeout_s=90)
    assert (machine.systemd.show(UNIT, "ExecMainStatus"), machine.systemd.show(UNIT, "Result")) == ("8", "success")


def test_uninstalling_leaves_no_trace_but_the_owners(machine: Machine) -> None:
    machine.agent("uninstall", "--purge")
    assert machine.systemd.run("systemctl", "is-enabled", UNIT, check=False).strip() in {"", "not-found", "masked-runtime"}
    assert [path.name for path in machine.state_dir.iterdir()] == ["agent.toml"]
    assert "covey-agent:" not in (machine.systemd.root / "etc/passwd").read_text()
