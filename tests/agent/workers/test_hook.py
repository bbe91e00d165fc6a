"""The health hook's child: real executables."""

from pathlib import Path

import pytest
from tests.fakes.agent.daemon import is_alive
from tests.fakes.nats_broker import wait_until

from covey_agent.core.jobs import HookJob
from covey_agent.workers.hook import run_hook


def script(folder: Path, text: str) -> str:
    """An executable."""
    path = folder / "hook"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_exit_code_zero_is_healthy_and_the_hook_is_told_what_serves(tmp_path: Path) -> None:
    command = [script(tmp_path, f'echo "$COVEY_MODEL $1" > {tmp_path}/seen'), "word"]
    assert run_hook(HookJob(command=command, environment={"COVEY_MODEL": "digits"}, timeout_s=10)).healthy
    assert (tmp_path / "seen").read_text() == "digits word\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [("echo the camera is dark; exit 3", "exit code 3: the camera is dark"), ("kill -9 $$", "SIGKILL"), ("sleep 60", "within 0.5 s")],
)
def test_anything_else_is_not_and_says_why(tmp_path: Path, text: str, words: str) -> None:
    ended = run_hook(HookJob(command=[script(tmp_path, text)], environment={}, timeout_s=0.5))
    assert not ended.healthy
    assert words in ended.reason


def test_a_hook_that_cannot_be_started_says_so(tmp_path: Path) -> None:
    ended = run_hook(HookJob(command=[str(tmp_path / "missing")], environment={}, timeout_s=1))
    assert (ended.healthy, "cannot be started" in ended.reason) == (False, True)


def test_what_a_slow_hook_started_ends_with_it(tmp_path: Path) -> None:
    command = [script(tmp_path, f"sleep 300 & echo $! > {tmp_path}/pid; wait")]
    assert not run_hook(HookJob(command=command, environment={}, timeout_s=1)).healthy
    pid = int((tmp_path / "pid").read_text())
    wait_until(lambda: not is_alive(pid), what=f"the end of process {pid}")
