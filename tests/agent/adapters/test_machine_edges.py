"""The small edges: lock, sockets, clock, /proc, slot files, atomic writes."""

import os
import socket
import stat
import subprocess
import time
from pathlib import Path

import msgspec
import pytest

from covey_agent.adapters.clock import SystemClock
from covey_agent.adapters.lock import StateLock, find_holder
from covey_agent.adapters.slot_files import Proven, SlotFiles, write_atomically
from covey_agent.adapters.sockets import ListeningSockets
from covey_agent.adapters.system_metrics import SystemMetrics
from covey_agent.errors import AlreadyRunningError, StateError
from covey_contract.messages import Quarantined
from covey_contract.release import Bounds


def test_second_lock_is_refused_and_names_the_holder(tmp_path: Path) -> None:
    lock = StateLock.acquire(tmp_path / "agent.lock")
    with pytest.raises(AlreadyRunningError, match=f"process {os.getpid()}"):
        StateLock.acquire(tmp_path / "agent.lock")
    assert find_holder(tmp_path / "agent.lock") == os.getpid()
    lock.release()
    assert find_holder(tmp_path / "agent.lock") is None
    StateLock.acquire(tmp_path / "agent.lock").release()


def test_lock_in_a_missing_folder_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="cannot open"):
        StateLock.acquire(tmp_path / "missing" / "agent.lock")


@pytest.mark.parametrize("name", ["run", "r" * 120], ids=["short", "longer than sun_path"])
def test_unix_socket_listens_before_any_worker_does(tmp_path: Path, name: str) -> None:
    for _ in range(2):  # the second finds the first one's file
        sockets = ListeningSockets.open(tmp_path / name)
        folder = os.open(tmp_path / name, os.O_RDONLY)
        client = socket.socket(socket.AF_UNIX)
        client.connect(f"/proc/self/fd/{folder}/infer.sock")
        assert sockets.tcp_fd == -1
        client.close()
        os.close(folder)
        sockets.close()


def test_only_owner_and_group_may_ask(tmp_path: Path) -> None:
    run = tmp_path / "run"
    sockets = ListeningSockets.open(run)
    assert stat.S_IMODE((run / "infer.sock").stat().st_mode) == 0o660
    if os.geteuid() == 0:  # who may become somebody else can see it refused
        group = 54321
        os.chown(run / "infer.sock", 0, group)
        folder = os.open(run, os.O_RDONLY | os.O_DIRECTORY)  # the folders above are the test runner's own
        connect = f"import socket; socket.socket(socket.AF_UNIX).connect('/proc/self/fd/{folder}/infer.sock')"
        codes = []
        for groups in ([], [group]):
            argv = ["/usr/bin/env", "python3", "-c", connect]
            done = subprocess.run(argv, user=65534, group=65534, extra_groups=groups, pass_fds=[folder], capture_output=True, check=False)
            codes.append((done.returncode, b"PermissionError" in done.stderr))
        os.close(folder)
        assert codes == [(1, True), (0, False)]
    sockets.close()


def test_tcp_is_loopback_only_and_has_a_token_that_stays(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    sockets = ListeningSockets.open(tmp_path / "run", tcp_port=port)
    token = sockets.token
    assert len(token) >= 32
    assert stat.S_IMODE((tmp_path / "run" / "infer.token").stat().st_mode) & 0o007 == 0
    with socket.socket(fileno=os.dup(sockets.tcp_fd)) as listener:
        assert listener.getsockname() == ("127.0.0.1", port)
    with pytest.raises(StateError, match=str(port)):
        ListeningSockets.open(tmp_path / "other", tcp_port=port)
    sockets.close()
    again = ListeningSockets.open(tmp_path / "run", tcp_port=port)
    assert again.token == token
    again.close()


def test_clock_never_reads_earlier_than_what_was_known() -> None:
    future = time.time_ns() // 1_000_000 + 10_000_000
    assert SystemClock(future).now_ms() == future
    assert SystemClock().now_ms() < future
    assert SystemClock().now().tzinfo is not None


def test_metrics_are_read_from_the_kernels_files(tmp_path: Path) -> None:
    proc = tmp_path / "proc"
    (proc / "self").mkdir(parents=True)
    zone = tmp_path / "sys/class/thermal/thermal_zone0"
    zone.mkdir(parents=True)
    (proc / "stat").write_text("cpu  100 0 100 700 100 0 0 0 0 0\ncpu0 1 2\n")
    (proc / "meminfo").write_text("MemTotal:       1000 kB\nMemFree: 1 kB\nMemAvailable:    400 kB\n")
    (proc / "self/statm").write_text("1000 25 3 4 5 6 7\n")
    (zone / "temp").write_text("48250\n")
    metrics = SystemMetrics(tmp_path, root=tmp_path)
    (proc / "stat").write_text("cpu  150 0 130 760 110 0 0 0 0 0\n")  # 80 of 150 ticks busy
    values = metrics.read()
    assert values["cpu_percent"] == pytest.approx(53.3)
    assert values["memory_bytes"] == 600 * 1024
    assert values["temperature_c"] == 48.2
    assert values["rss_bytes"] == 25 * os.sysconf("SC_PAGE_SIZE")
    assert isinstance(values["disk_free_bytes"], int)


def test_machine_without_sensors_leaves_values_out(tmp_path: Path) -> None:
    assert set(SystemMetrics(tmp_path, root=tmp_path).read()) == {"disk_free_bytes"}


def test_metrics_of_this_very_machine_make_sense(tmp_path: Path) -> None:
    values = SystemMetrics(tmp_path).read()
    assert float(values["memory_bytes"]) > 0
    assert float(values["rss_bytes"]) > 1_000_000


def test_slot_is_empty_until_it_is_complete(tmp_path: Path) -> None:
    slots = SlotFiles(tmp_path)
    assert slots.note("A") is None
    folder = tmp_path / "slots" / "A"
    folder.mkdir(parents=True)
    (folder / "slot.json").write_text('{"model": "digi')
    assert slots.note("A") is None
    (folder / "slot.json").write_text('{"model": "digits", "version": 3, "artifact": "aa", "future": 1}')
    note = slots.note("A")
    assert note is not None
    assert (note.model, note.version) == ("digits", 3)


def test_unreadable_manifest_means_the_default_bounds(tmp_path: Path) -> None:
    slots = SlotFiles(tmp_path)
    assert slots.bounds("A") == Bounds()
    (tmp_path / "slots" / "A").mkdir(parents=True)
    (tmp_path / "slots" / "A" / "manifest.json").write_bytes(msgspec.json.encode({"model": "m", "bounds": Bounds(min_requests=7)}))
    assert slots.bounds("A").min_requests == 7


def test_second_copy_of_what_is_proven_survives_damage(tmp_path: Path) -> None:
    slots = SlotFiles(tmp_path)
    proven = Proven(committed="B", quarantine=[Quarantined(digest="a" * 64, reason="died", at=1)])
    slots.save_proven(proven)
    assert slots.load_proven() == proven
    (tmp_path / "slots" / "proven.json").write_bytes(b'{"commi')
    assert slots.load_proven() == Proven()


def test_atomic_write_leaves_the_old_file_when_it_fails(tmp_path: Path) -> None:
    target = tmp_path / "file"
    write_atomically(target, b"old", mode=0o600)
    (tmp_path / ".file.tmp").mkdir()
    with pytest.raises(OSError, match="directory"):
        write_atomically(target, b"new", mode=0o600)
    assert target.read_bytes() == b"old"
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
