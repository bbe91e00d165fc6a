"""The supervisor with real processes: order, restart, stop, and no orphan when it is killed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from covey_server.errors import UnavailableError
from covey_server.processes import ProcessSpec
from covey_server.supervisor import Supervisor, describe_exit

pytestmark = pytest.mark.slow


def _spec(name: str, code: str, tmp_path: Path) -> ProcessSpec:
    marker = tmp_path / f"{name}.ready"
    argv = [sys.executable, "-c", f"import pathlib, time, os, sys; {code}", str(marker)]
    return ProcessSpec(name, argv, {}, None, marker.exists)


READY = "pathlib.Path(sys.argv[1]).write_text(str(os.getpid())); time.sleep(60)"


def _until(holds: object, *, timeout_s: float = 20.0) -> None:
    assert callable(holds)
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.05)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"


def test_programs_start_in_order_and_all_stop(tmp_path: Path) -> None:
    told: list[tuple[str, str]] = []
    specs = [_spec("one", READY, tmp_path), _spec("two", READY, tmp_path)]
    supervisor = Supervisor(specs, tmp_path / "logs", on_change=lambda name, what: told.append((name, what)))
    supervisor.start()
    assert told == [("one", "starting"), ("one", "ready"), ("two", "starting"), ("two", "ready")]
    pids = [supervisor.pid_of("one"), supervisor.pid_of("two")]
    supervisor.stop()
    assert not any(pid and _is_alive(pid) for pid in pids)


def test_a_start_that_is_not_wanted_any_more_ends_at_once(tmp_path: Path) -> None:
    specs = [_spec("one", "time.sleep(60)", tmp_path), _spec("two", READY, tmp_path)]  # one never gets ready
    answers = iter([True, True])
    supervisor = Supervisor(specs, tmp_path / "logs", is_wanted=lambda: next(answers, False))
    begin = time.monotonic()
    supervisor.start()
    assert time.monotonic() - begin < 5
    assert supervisor.pid_of("two") is None
    supervisor.stop()


def test_a_program_that_dies_is_started_again(tmp_path: Path) -> None:
    supervisor = Supervisor([_spec("one", READY, tmp_path)], tmp_path / "logs")
    supervisor.start()
    first = supervisor.pid_of("one")
    assert first is not None
    os.kill(first, signal.SIGKILL)

    def again() -> bool:
        supervisor.poll()
        return supervisor.pid_of("one") not in {None, first}

    _until(again)
    supervisor.stop()


def test_a_program_that_cannot_start_is_reported_with_its_last_words(tmp_path: Path) -> None:
    supervisor = Supervisor([_spec("one", "sys.exit('port 1 is taken')", tmp_path)], tmp_path / "logs")
    with pytest.raises(UnavailableError, match="port 1 is taken"):
        supervisor.start()


def test_what_a_program_started_in_a_session_of_its_own_is_stopped_with_it(tmp_path: Path) -> None:
    helper = "import time, signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
    code = (
        f"import subprocess; helper = subprocess.Popen([sys.executable, '-c', {helper!r}], start_new_session=True); "
        "pathlib.Path(sys.argv[1]).write_text(str(helper.pid)); time.sleep(60)"
    )
    supervisor = Supervisor([_spec("one", code, tmp_path)], tmp_path / "logs")
    supervisor.start()
    _until((tmp_path / "one.ready").read_text)  # the file is there a moment before what is written into it
    helper_pid = int((tmp_path / "one.ready").read_text())
    assert _is_alive(helper_pid)
    supervisor.stop(timeout_s=1.0)
    _until(lambda: not _is_alive(helper_pid), timeout_s=2.0)


def test_no_orphan_is_left_when_the_supervisor_is_killed(tmp_path: Path) -> None:
    code = (
        "import sys, time, pathlib; from covey_server.processes import ProcessSpec; from covey_server.supervisor import Supervisor; "
        f"marker = pathlib.Path({str(tmp_path / 'child')!r}); "
        f"argv = [sys.executable, '-c', {('import pathlib, time, os, sys; ' + READY)!r}, str(marker)]; "
        f"logs = pathlib.Path({str(tmp_path / 'logs')!r}); "
        "Supervisor([ProcessSpec('one', argv, {}, None, marker.exists)], logs).start(); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code])
    marker = tmp_path / "child"
    _until(lambda: marker.exists() and marker.read_text())
    child = int(marker.read_text())
    parent.kill()
    parent.wait()
    _until(lambda: not _is_alive(child))


@pytest.mark.parametrize(("code", "words"), [(0, "exit code 0"), (3, "exit code 3"), (-11, "killed by SIGSEGV")])
def test_exits_are_told_in_words(code: int, words: str) -> None:
    assert describe_exit(code) == words
