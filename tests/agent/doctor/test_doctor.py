"""The doctor against real faults: a real broker, a real HTTPS edge of the same CA, the real daemon, and what goes wrong with them."""

import json
import os
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.fakes.agent.daemon import Daemon, make_identity
from tests.fakes.agent.edge import Authority, EnrolmentEdge
from tests.fakes.nats_broker import RunningBroker, free_port, running_broker, wait_until

from covey_agent.doctor.case import Case, open_case
from covey_agent.doctor.clock import check_clock, read_clock_status
from covey_agent.doctor.disk import check_file_system, find_mount
from covey_agent.doctor.examination import AGENT, CHECKS, LOCAL, MACHINE, NETWORK, examine
from covey_agent.doctor.finding import Finding, Level
from covey_agent.doctor.machine import check_memory, check_open_files, check_power, check_temperature
from covey_agent.doctor.network import check_clock_difference

pytestmark = [pytest.mark.broker, pytest.mark.slow]


@dataclass
class Fleet:
    """A broker and a server's HTTPS edge of one CA."""

    broker: RunningBroker
    edge: EnrolmentEdge
    environment: dict[str, str] = field(default_factory=dict)

    def device(self, folder: Path) -> Path:
        """A state directory as enrolment leaves it."""
        make_identity(folder, self.broker, "cam-1")
        change_identity(folder, url=self.edge.url)
        for path in (folder / "identity").iterdir():
            path.chmod(0o600)
        (folder / "tuf").mkdir()
        root = {"signed": {"_type": "root", "version": 1, "expires": "2036-01-01T00:00:00Z"}, "signatures": []}
        (folder / "tuf" / "root.json").write_text(json.dumps(root))
        folder.chmod(0o700)
        return folder


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    folder = tmp_path_factory.mktemp("fleet")
    with (
        running_broker(folder / "server", devices=["cam-1"]) as broker,
        EnrolmentEdge(folder, Authority.load(broker.settings.path("pki"))) as edge,
    ):
        yield Fleet(broker, edge)


@pytest.fixture
def state_dir(fleet: Fleet, tmp_path: Path) -> Path:
    return fleet.device(tmp_path / "state")


def change_identity(folder: Path, **changes: object) -> None:
    path = folder / "identity" / "identity.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def look(name: str, case: Case) -> Finding:
    return CHECKS[name](case)


def look_at(state_dir: Path, name: str, environment: dict[str, str] | None = None) -> Finding:
    return look(name, open_case(state_dir, environment or {}, timeout_s=2.0))


def run_doctor(state_dir: Path, *options: str) -> tuple[int, dict[str, Any]]:
    command = [sys.executable, "-m", "covey_agent.cli", "doctor", "--json", "--state-dir", str(state_dir), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.stderr == ""
    return done.returncode, json.loads(done.stdout)


def test_a_healthy_device_has_no_problem_and_exits_with_0(fleet: Fleet, state_dir: Path) -> None:
    daemon = Daemon(state_dir)
    daemon.start()
    try:
        wait_until(lambda: daemon.status()["connected"], what="a connection")
        code, report = run_doctor(state_dir)
    finally:
        daemon.stop()
    assert code == 0, [line for line in report["checks"] if line["level"] == "problem"]
    levels = {line["check"]: line["level"] for line in report["checks"]}
    assert report["healthy"]
    assert report["problems"] == 0
    assert set(levels) == set(CHECKS)
    proven = {"identity", "keys", "certificate", "trust", "names", "broker port", "broker login", "server port", "server", "runtimes"}
    assert {name for name in proven | {"clock difference", "database", "agent", "connection"} if levels[name] != "ok"} == set()


def test_a_sick_one_exits_with_9_and_says_what_to_do(tmp_path: Path) -> None:
    code, report = run_doctor(tmp_path / "nothing", "--offline")
    assert code == 9
    assert not report["healthy"]
    sick = [line for line in report["checks"] if line["level"] in ("problem", "warning")]
    assert all(line["advice"] for line in sick)
    assert {line["check"] for line in report["checks"]} == set(CHECKS) - set(NETWORK)
    assert "state directory" in {line["check"] for line in sick}


def test_text_names_each_check_once_and_counts(state_dir: Path) -> None:
    command = [sys.executable, "-m", "covey_agent.cli", "doctor", "--offline", "--state-dir", str(state_dir)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 9  # the agent does not run
    assert "PROBLEM  agent" in done.stdout
    assert "-> sudo systemctl start covey-agent.service" in done.stdout
    assert f"{len(CHECKS) - len(NETWORK)} checks: 1 problem, " in done.stdout


def test_there_are_twenty_problems_and_more() -> None:
    assert len(CHECKS) == len(LOCAL) + len(NETWORK) + len(MACHINE) + len(AGENT)
    assert len(CHECKS) >= 20


# -- faults of files ---------------------------------------------------------------------------------------------------


def break_database(folder: Path) -> None:
    (folder / "state.db").write_bytes(b"SQLite format 3\0" + b"\xff" * 8000)


def set_one_aside(folder: Path) -> None:
    sqlite3.connect(folder / "state.db").close()
    (folder / "state.db.unreadable-17").write_bytes(b"")


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def write(name: str, text: str) -> Callable[[Path], None]:
    def act(folder: Path) -> None:
        (folder / name).write_text(text)

    return act


def fill_buffer(folder: Path) -> None:
    database = sqlite3.connect(folder / "state.db")
    database.executescript(
        "CREATE TABLE value (key TEXT PRIMARY KEY, data BLOB); CREATE TABLE reading (sequence INTEGER, at INTEGER, data BLOB);"
        "CREATE TABLE lost (priority INTEGER, count INTEGER); INSERT INTO lost VALUES (1, 7);"
    )
    database.close()


def swap_key(folder: Path) -> None:
    subprocess.run(
        ["openssl", "ecparam", "-genkey", "-name", "prime256v1", "-noout", "-out", str(folder / "identity" / "device.key")], check=True
    )


@pytest.mark.parametrize(
    ("check", "fault", "level", "words"),
    [
        ("state directory", lambda folder: folder.chmod(0o777), Level.PROBLEM, "others may write"),
        ("owners", lambda folder: os.chown(folder / "tuf" / "root.json", 12345, 12345), Level.PROBLEM, "belong to somebody else"),
        ("database", break_database, Level.PROBLEM, "is damaged"),
        ("database", set_one_aside, Level.WARNING, "set aside"),
        ("settings", write("agent.toml", "[inference]\nthread = 2\n"), Level.PROBLEM, "unknown key inference.thread"),
        ("settings", write("agent.toml", "[inference\n"), Level.PROBLEM, "cannot read"),
        ("datasets", write("agent.toml", '[datasets]\ndigits = "/no/such/file"\n'), Level.PROBLEM, "digits at /no/such/file"),
        (
            "health hook",
            write("agent.toml", '[health]\ncommand = "/no/such/hook --fast"\n'),
            Level.PROBLEM,
            "/no/such/hook is no executable",
        ),
        ("identity", remove("identity/identity.json"), Level.PROBLEM, "not enrolled"),
        ("identity", write("identity/identity.json", "{"), Level.PROBLEM, "is damaged"),
        ("identity", write("decommissioned.json", "{}"), Level.PROBLEM, "decommissioned"),
        ("keys", remove("identity/device.key"), Level.PROBLEM, "cannot be used"),
        ("keys", swap_key, Level.PROBLEM, "cannot be used"),
        ("keys", lambda folder: (folder / "identity" / "device.key").chmod(0o644), Level.PROBLEM, "others may read"),
        ("trust", remove("tuf/root.json"), Level.PROBLEM, "no release can be verified"),
        ("readings", fill_buffer, Level.WARNING, "7 were lost"),
    ],
)
def test_a_fault_of_files_is_found(state_dir: Path, check: str, fault: Callable[[Path], None], level: Level, words: str) -> None:
    before = look_at(state_dir, check)
    assert before.level in (Level.OK, Level.SKIPPED), before
    fault(state_dir)
    found = look_at(state_dir, check)
    assert found.level is level, found
    assert words in found.found
    assert found.advice


def test_a_changed_model_file_is_found(state_dir: Path) -> None:
    slot = state_dir / "slots" / "A"
    slot.mkdir(parents=True)
    digest = "a" * 64
    (slot / "slot.json").write_text(json.dumps({"model": "m", "version": 1, "manifest": "b" * 64, "variant": "v", "artifact": digest}))
    (slot / "model.onnx").write_bytes(b"changed")
    (state_dir / "slots" / "proven.json").write_text(json.dumps({"committed": "A"}))
    found = look_at(state_dir, "model files")
    assert found.level is Level.PROBLEM
    assert "is not the file that was verified" in found.found
    (slot / "model.onnx").unlink()
    assert look_at(state_dir, "model files").found.endswith("has no file")


# -- faults of the network ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("check", "changes", "words"),
    [
        ("names", {"mqtt_host": "no-such-host.invalid"}, "the name no-such-host.invalid cannot be resolved"),
        ("broker port", {"mqtt_port": 1}, "nobody listens at localhost:1"),
        ("server port", {"url": "https://localhost:1"}, "nobody listens at localhost:1"),
        ("broker login", {"mqtt_port": 1}, "network: nobody listens"),
        ("server", {"url": "https://localhost:1"}, "network: nobody listens"),
    ],
)
def test_a_fault_of_the_network_is_found(state_dir: Path, check: str, changes: dict[str, object], words: str) -> None:
    assert look_at(state_dir, check).level is Level.OK
    change_identity(state_dir, **changes)
    found = look_at(state_dir, check)
    assert found.level is Level.PROBLEM
    assert words in found.found
    assert found.advice


def test_a_port_that_swallows_everything_is_a_firewall(state_dir: Path) -> None:
    with socket.socket() as listener:  # its backlog is full: the kernel drops what comes, as a firewall does
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        port = listener.getsockname()[1]
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.1", port))
        change_identity(state_dir, mqtt_host="127.0.0.1", mqtt_port=port)
        found = look("broker port", open_case(state_dir, {}, timeout_s=0.5))
        for filler in fillers:
            filler.close()
    assert found.level is Level.PROBLEM
    assert "a firewall in between?" in found.advice


def test_a_revoked_device_is_told_so(fleet: Fleet, state_dir: Path) -> None:
    assert look_at(state_dir, "broker login").level is Level.OK
    fleet.broker.allow()
    try:
        found = look_at(state_dir, "broker login")
    finally:
        fleet.broker.allow("cam-1")
    assert found.level is Level.PROBLEM
    assert "revoked" in found.found + found.advice
    wait_until(lambda: look_at(state_dir, "broker login").level is Level.OK, what="let in again")


def test_another_fleet_behind_the_same_address_is_found(state_dir: Path, tmp_path: Path) -> None:
    with EnrolmentEdge(tmp_path) as other:
        change_identity(state_dir, url=other.url)
        change_identity(state_dir, mqtt_port=int(other.url.rpartition(":")[2]))
        found, login = look_at(state_dir, "server"), look_at(state_dir, "broker login")
    for each in (found, login):
        assert each.level is Level.PROBLEM
        assert each.found.startswith("wrong server: the certificate at localhost")
        assert "proxies" in each.advice


def test_something_of_this_fleet_that_is_no_broker_is_found(fleet: Fleet, state_dir: Path) -> None:
    change_identity(state_dir, mqtt_port=int(fleet.edge.url.rpartition(":")[2]))
    found = look_at(state_dir, "broker login")
    assert found.level is Level.PROBLEM
    assert found.found.startswith("cannot use the broker at localhost")


def test_something_that_is_no_https_is_found(state_dir: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        change_identity(state_dir, url=f"https://127.0.0.1:{listener.getsockname()[1]}")
        found = look("server", open_case(state_dir, {}, timeout_s=0.5))
    assert found.level is Level.PROBLEM


def test_settings_lead_the_checks_to_where_the_agent_connects(state_dir: Path) -> None:
    environment = {"COVEY_AGENT_BROKER_HOST": "localhost", "COVEY_AGENT_BROKER_PORT": "1"}
    assert "localhost:1" in look_at(state_dir, "broker port", environment).found


# -- time and machine --------------------------------------------------------------------------------------------------


def case_at(root: Path, **changes: Any) -> Case:
    case = open_case(root / "state", {}, root=root)
    return Case(**{name: changes.get(name, getattr(case, name)) for name in Case.__dataclass_fields__})


class ShiftedCase(Case):
    """On a machine whose clock is wrong."""

    def now_ms(self) -> int:
        return 86_400_000  # 1970-01-02


def test_a_clock_of_1970_is_a_problem(tmp_path: Path) -> None:
    case = case_at(tmp_path)
    assert check_clock(case).level is Level.OK
    shifted = ShiftedCase(**{name: getattr(case, name) for name in Case.__dataclass_fields__})
    found = check_clock(shifted)
    assert found.level is Level.PROBLEM
    assert "1970-01-02" in found.found


def test_the_kernel_tells_whether_its_clock_is_kept() -> None:
    status = read_clock_status()
    assert status is not None
    assert 0 <= status < 1 << 16


@pytest.mark.parametrize(("hours", "level"), [(0.0, Level.OK), (0.1, Level.WARNING), (30.0, Level.PROBLEM)])
def test_the_servers_clock_is_compared(monkeypatch: pytest.MonkeyPatch, state_dir: Path, hours: float, level: Level) -> None:
    date = datetime.now(UTC) + timedelta(hours=hours)
    monkeypatch.setattr("covey_agent.doctor.network._fetch_authority", lambda _case: ("", "", date))
    assert check_clock_difference(open_case(state_dir, {})).level is level


MOUNTS = """/dev/root / ext4 rw,noatime 0 0
tmpfs /run tmpfs rw,nosuid 0 0
/dev/sda1 /media/usb\\040stick vfat rw 0 0
server:/export /mnt/share nfs4 rw 0 0
/dev/mmcblk0p3 /data ext4 ro,relatime 0 0
"""


@pytest.mark.parametrize(
    ("path", "level", "words"),
    [
        ("/var/lib/covey-agent", Level.OK, "ext4 at /"),
        ("/run/covey", Level.WARNING, "lost with a restart"),
        ("/media/usb stick/covey", Level.PROBLEM, "neither owners nor rights"),
        ("/mnt/share/covey", Level.PROBLEM, "does not lock reliably"),
        ("/data/covey", Level.PROBLEM, "read-only"),
    ],
)
def test_the_file_system_is_judged(tmp_path: Path, path: str, level: Level, words: str) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "mounts").write_text(MOUNTS)
    found = check_file_system(case_at(tmp_path, state_dir=Path(path)))
    assert found.level is level
    assert words in found.found


def test_the_last_mount_on_a_point_counts() -> None:
    found = find_mount("a /data ext4 rw 0 0\nb /data tmpfs rw 0 0\n", Path("/data/x"))
    assert found == ("/data", "tmpfs", ["rw"])


@pytest.mark.parametrize(
    ("check", "file", "text", "level"),
    [
        (check_memory, "proc/meminfo", "MemAvailable: 900000 kB\n", Level.OK),
        (check_memory, "proc/meminfo", "MemAvailable: 90000 kB\n", Level.WARNING),
        (check_memory, "proc/meminfo", "MemAvailable: 9000 kB\n", Level.PROBLEM),
        (check_temperature, "sys/class/thermal/thermal_zone0/temp", "45000\n", Level.OK),
        (check_temperature, "sys/class/thermal/thermal_zone0/temp", "84000\n", Level.WARNING),
        (check_power, "sys/devices/platform/soc/soc:firmware/get_throttled", "0\n", Level.OK),
        (check_power, "sys/devices/platform/soc/soc:firmware/get_throttled", "50000\n", Level.WARNING),
        (check_power, "sys/devices/platform/soc/soc:firmware/get_throttled", "50005\n", Level.PROBLEM),
        (check_open_files, "proc/self/limits", "Max open files            64                   4096       files\n", Level.PROBLEM),
        (check_open_files, "proc/self/limits", "Max open files            1024                 4096       files\n", Level.OK),
    ],
)
def test_the_machine_is_judged(tmp_path: Path, check: Callable[[Case], Finding], file: str, text: str, level: Level) -> None:
    assert check(case_at(tmp_path)).level is Level.SKIPPED
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.write_text(text)
    assert check(case_at(tmp_path)).level is level


def test_an_unexpected_error_is_a_finding_and_the_others_go_on(state_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_case: Case) -> Finding:
        raise ZeroDivisionError("oh")

    monkeypatch.setattr("covey_agent.doctor.examination.CHECKS", {"broken": fail, "settings": CHECKS["settings"]})
    first, second = examine(open_case(state_dir, {}))
    assert first.level is Level.PROBLEM
    assert "ZeroDivisionError: oh" in first.found
    assert second.level is Level.OK


# -- the agent ---------------------------------------------------------------------------------------------------------


def test_an_agent_that_cannot_connect_is_told_with_its_reason(state_dir: Path) -> None:
    assert look_at(state_dir, "agent").level is Level.PROBLEM
    daemon = Daemon(state_dir, {"COVEY_AGENT_BROKER_PORT": str(free_port())})
    daemon.start()
    try:
        wait_until(lambda: "nobody listens" in look_at(state_dir, "connection").found, what="the reason")
        assert look_at(state_dir, "connection").level is Level.PROBLEM
        assert look_at(state_dir, "agent").level is Level.OK
        assert look_at(state_dir, "local API").level is Level.SKIPPED
    finally:
        daemon.stop()
