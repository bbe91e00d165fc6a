"""The real agent process under a service manager that only listens: READY, WATCHDOG, STOPPING, and silence when its event loop is stuck."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.fakes.agent.daemon import Daemon, make_identity
from tests.fakes.nats_broker import RunningBroker, running_broker, wait_until

pytestmark = [pytest.mark.broker]
WATCHDOG_S = 1.0
# The real agent, except that handling the new connection never ends: the process lives, its loop does not.
STUCK = """
import threading
from covey_agent.daemon.hub import Hub
Hub.connected = lambda self, certificate: threading.Event().wait()
from covey_agent.cli import main
main()
"""


class Manager:
    """Listens on a datagram socket."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind("")
        self.heard: list[tuple[float, str]] = []
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def environment(self) -> dict[str, str]:
        """What a service is given."""
        return {"NOTIFY_SOCKET": "@" + self._socket.getsockname()[1:].decode(), "WATCHDOG_USEC": str(int(WATCHDOG_S * 1e6))}

    def has(self, line: str) -> bool:
        return line in [line for _, line in self.heard]

    def beats_since(self, start: float) -> int:
        return sum(line == "WATCHDOG=1" for at, line in self.heard if at > start)

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(5)
        self._socket.close()

    def _listen(self) -> None:
        while data := self._socket.recv(4096):
            self.heard += [(time.monotonic(), line) for line in data.decode().split("\n")]


@pytest.fixture
def manager() -> Iterator[Manager]:
    manager = Manager()
    yield manager
    manager.close()


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[RunningBroker]:
    with running_broker(tmp_path / "server", devices=["cam-1"]) as broker:
        make_identity(tmp_path / "state", broker, "cam-1")
        yield broker


@pytest.mark.usefixtures("broker")
def test_ready_then_beats_then_stopping(tmp_path: Path, manager: Manager) -> None:
    daemon = Daemon(tmp_path / "state", environment=manager.environment())
    daemon.start()
    wait_until(lambda: manager.has("STATUS=connected; no model serves"), what="the status")
    assert manager.has("READY=1")
    start = time.monotonic()
    wait_until(lambda: manager.beats_since(start) >= 4, what="four beats")
    assert not manager.has("STOPPING=1")

    os.kill(daemon.pid, signal.SIGSTOP)
    stopped = time.monotonic()
    threading.Event().wait(3 * WATCHDOG_S)
    assert manager.beats_since(stopped + WATCHDOG_S / 2) == 0
    os.kill(daemon.pid, signal.SIGCONT)

    assert daemon.stop() == 0
    wait_until(lambda: manager.has("STOPPING=1"), what="the end")


@pytest.mark.usefixtures("broker")
def test_a_loop_that_is_stuck_in_one_step_gives_no_beat(tmp_path: Path, manager: Manager) -> None:
    command = [sys.executable, "-c", STUCK, "run", "--state-dir", str(tmp_path / "state")]
    with (tmp_path / "log").open("wb") as log, subprocess.Popen(command, stderr=log, env=os.environ | manager.environment()) as process:
        try:
            wait_until(lambda: manager.has("READY=1") and manager.has("WATCHDOG=1"), what="the boot")
            wait_until(lambda: time.monotonic() - manager.heard[-1][0] > 3 * WATCHDOG_S, what="silence", timeout_s=60)
            assert process.poll() is None, "it lives"
        finally:
            process.kill()
