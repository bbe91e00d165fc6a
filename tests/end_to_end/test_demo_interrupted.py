"""Ctrl-C in `covey demo`: it ends soon, says so with its exit code, and leaves no process behind."""

import re
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.end_to_end.demo_process import DemoProcess
from tests.end_to_end.processes import wait_for

pytestmark = [pytest.mark.end_to_end, pytest.mark.slow, pytest.mark.xdist_group("fleet"), pytest.mark.timeout(400)]
INTERRUPTED = 130
SOON_S = 20.0


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[DemoProcess]:
    demo = DemoProcess(tmp_path, ["--devices", "1", "--partners", "1", "--rounds", "20"])
    demo.start()
    yield demo
    demo.end()


def wait_while_running(demo: DemoProcess, what: str, probe: Callable[[], Any]) -> None:
    """Wait for something that the demo comes to."""

    def look() -> Any:
        assert demo.running().poll() is None, f"the demo has ended\n{demo.explain()}"
        return probe()

    wait_for(what, look, timeout_s=180, explain=demo.explain, poll_s=0.2)


def trained_rounds(demo: DemoProcess) -> int:
    """How many rounds the run has done; 0 before there is one."""
    server = demo.work_dir / "server"
    try:
        port = tomllib.loads((server / "covey.toml").read_text("utf-8"))["api"]["port"]
        token = (server / "admin.token").read_text("utf-8").strip()
        answer = httpx.get(f"http://127.0.0.1:{port}/api/v1/runs", headers={"Authorization": f"Bearer {token}"}, timeout=10)
    except (OSError, httpx.TransportError):
        return 0
    return max((run["rounds_done"] for run in answer.json()["items"]), default=0) if answer.status_code == 200 else 0


def assert_ends_soon(demo: DemoProcess) -> None:
    started = time.monotonic()
    assert demo.wait(60) == INTERRUPTED, demo.explain()
    took = time.monotonic() - started
    assert demo.left_over() == []  # at once: who runs the demo again must find nothing of the one before
    assert took <= SOON_S, f"it took {took:.1f} s\n{demo.explain()}"


def test_ctrl_c_in_the_middle_of_training_stops_everything(demo: DemoProcess) -> None:
    wait_while_running(demo, "a round that is done", lambda: trained_rounds(demo) >= 1)
    assert len(demo.left_over()) >= 8, "where are the processes?"
    demo.interrupt()
    assert_ends_soon(demo)


def test_an_impatient_second_ctrl_c_while_it_comes_up_leaves_no_orphan(demo: DemoProcess) -> None:
    wait_while_running(demo, "the console's address", lambda: re.search(r"Console: http", demo.output()))
    demo.interrupt()
    time.sleep(0.5)
    demo.interrupt()
    assert_ends_soon(demo)
