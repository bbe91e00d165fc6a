"""A server with open streams ends at once, and ends its pages' streams properly instead of cutting them off."""

import http.client
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
import uvicorn
from tests.fakes.console_app import build_console, log_in_as, open_database

from covey_server import console
from covey_server.access.logins import COOKIE_NAME
from covey_server.access.models import Role
from covey_server.clock import utc_now
from covey_server.db import Database

pytestmark = pytest.mark.slow

_PROGRAM = """
import sys
from pathlib import Path
import uvicorn
from covey_server.clock import utc_now
from covey_server.db import Database
from tests.fakes.console_app import build_console
folder = Path(sys.argv[1])
app = build_console(Database(f"sqlite:///{folder / 'fleet.db'}"), clock=utc_now, folder=folder)
uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[2]), ws="none", log_level="warning")
"""


@pytest.fixture
def secret(tmp_path: Path) -> Iterator[str]:
    db = open_database(tmp_path)
    yield log_in_as(db, Role.VIEWER, now=utc_now())[0]
    db.close()


@contextmanager
def open_stream(port: int, secret: str) -> Iterator[http.client.HTTPResponse]:
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=10)) as connection:
        connection.request("GET", "/events", headers={"Cookie": f"{COOKIE_NAME}={secret}", "Accept": "text/event-stream"})
        with connection.getresponse() as answer:
            assert answer.status == 200
            assert answer.readline() == b": covey\n"
            yield answer


def wait_for_port(port: int) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    pytest.fail("the server did not start")


def test_sigterm_ends_a_server_whose_pages_are_open(tmp_path: Path, secret: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    server = subprocess.Popen([sys.executable, "-c", _PROGRAM, str(tmp_path), str(port)], stderr=subprocess.PIPE, text=True)
    try:
        wait_for_port(port)
        with open_stream(port, secret) as stream:
            server.send_signal(signal.SIGTERM)
            stream.read()  # raises IncompleteRead if the stream was cut off
        _, errors = server.communicate(timeout=10)
    finally:
        server.kill()
        server.wait()
    assert errors == ""


def test_a_server_that_handles_signals_itself_lets_the_pages_go(tmp_path: Path, secret: str) -> None:
    db = Database(f"sqlite:///{tmp_path / 'fleet.db'}")
    app = build_console(db, clock=utc_now, folder=tmp_path)
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, ws="none", log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    with open_stream(server.servers[0].sockets[0].getsockname()[1], secret) as stream:
        console.end_streams(app)
        server.should_exit = True
        stream.read()
    thread.join(10)
    assert not thread.is_alive()
    db.close()
