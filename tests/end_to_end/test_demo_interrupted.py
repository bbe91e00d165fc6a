"""Ctrl-C in `covey demo`: it ends soon, says so with its exit code, and leaves no process behind."""

import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.end_to_end.demo_process import DemoProcess
from tests.end_to_end.processes import wait_for

pytestmark = [pytest.mark.end_to_end, pytest.mark.slow, pytest.mark.timeout(400)]
INTERRUPTED = 130
SOON_S = 40.0  # a few seconds on a machine that does nothing else


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[DemoProcess]:
    demo = DemoProcess(tmp_path, ["--devices", "1", "--partners", "1", "--rounds", "50"])
    demo.start()
    yield demo
    demo.end()


def wait_while_running(demo: DemoProcess, what: str, probe: Callable[[], Any]) -> None:
    """Wait for something that the demo comes to."""

    def look() -> Any:
        assert demo.running().poll() is None, f"the demo has ended\n{demo.explain()}"
        return probe()

    wait_for(what, look, timeout_s=180, explain=demo.explain, poll_s=0.2)


def is_training(demo: DemoProcess) -> bool:
    """Whether participants train, and beside them the references without privacy."""
    family = "\n".join(demo.left_over())
    return "covey_agent.workers.train" in family and "references.py" in family and "flwr-serverapp" in family


def assert_ends_soon(demo: DemoProcess) -> None:
    started = time.monotonic()
    assert demo.wait(60) == INTERRUPTED, demo.explain()
    took = time.monotonic() - started
    assert demo.left_over() == []  # at once: who runs the demo again must find nothing of the one before
    assert took <= SOON_S, f"it took {took:.1f} s\n{demo.explain()}"


def test_ctrl_c_in_the_middle_of_training_stops_everything(demo: DemoProcess) -> None:
    wait_while_running(demo, "rounds under way", lambda: is_training(demo))
    demo.interrupt()
    assert_ends_soon(demo)


def test_an_impatient_second_ctrl_c_while_it_comes_up_leaves_no_orphan(demo: DemoProcess) -> None:
    wait_while_running(demo, "the console's address", lambda: re.search(r"Console: http", demo.output()))
    demo.interrupt()
    time.sleep(0.5)
    demo.interrupt()
    assert_ends_soon(demo)
