"""What the service manager hears, over real datagram sockets."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from covey_agent.adapters.notify import ServiceNotifier, take_notifier
from covey_agent.daemon.live import FILE_NAME, Live, LiveFile, read_live


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        if request.param == "path":
            sock.bind(str(tmp_path / "notify"))
            yield sock, str(tmp_path / "notify")
        else:
            sock.bind("")
            yield sock, "@" + sock.getsockname()[1:].decode()


def test_lines_come_in_one_datagram(manager: tuple[socket.socket, str]) -> None:
    sock, address = manager
    ServiceNotifier(address).tell("READY=1", "STATUS=grüß Gott")
    assert sock.recv(1000).decode() == "READY=1\nSTATUS=grüß Gott"


def test_the_variables_are_taken_so_that_no_child_has_them(manager: tuple[socket.socket, str]) -> None:
    sock, address = manager
    environment = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "2500000", "WATCHDOG_PID": str(os.getpid()), "HOME": "/"}
    notifier = take_notifier(environment)
    assert environment == {"HOME": "/"}
    assert notifier.watchdog_s == 2.5
    notifier.tell("WATCHDOG=1")
    assert sock.recv(1000) == b"WATCHDOG=1"


@pytest.mark.parametrize(
    "environment", [{}, {"WATCHDOG_USEC": "x"}, {"WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "1"}], ids=["none", "garbage", "another's"]
)
def test_a_watchdog_that_is_not_meant_is_none(environment: dict[str, str]) -> None:
    assert take_notifier(environment).watchdog_s == 0


def test_nobody_listening_is_no_error(tmp_path: Path) -> None:
    ServiceNotifier().tell("READY=1")
    ServiceNotifier(str(tmp_path / "gone")).tell("READY=1")


def test_a_living_agent_of_another_user_is_not_taken_for_dead(tmp_path: Path) -> None:
    """Process 1 is there, and a user without rights may not send it even signal 0."""
    LiveFile(tmp_path).write(Live(pid=1, boot="b", connected=True, since=1))
    (tmp_path / FILE_NAME).chmod(0o644)
    assert read_live(tmp_path) is not None
    code = "import os, sys; from pathlib import Path; from covey_agent.daemon import live\n"
    code += "kill = os.kill\n"
    code += "def refuse(pid, number): raise PermissionError\n"
    code += "os.kill = refuse\nassert live.read_live(Path(sys.argv[1])) is not None"
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    LiveFile(tmp_path).write(Live(pid=2**22 - 1, boot="c", connected=True, since=1))
    assert read_live(tmp_path) is None
