"""The demo's cable: what it relays, and that pulling it is a real loss of the network."""

import socket
import threading
from collections.abc import Iterator

import pytest

from covey_server.demo.cable import Cable


@pytest.fixture
def echo() -> Iterator[int]:
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            threading.Thread(target=_echo, args=(connection,), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    yield server.getsockname()[1]
    server.close()


def _echo(connection: socket.socket) -> None:
    with connection:
        try:
            while data := connection.recv(4096):
                connection.sendall(data)
        except OSError:
            return


def test_a_plugged_cable_relays_and_a_pulled_one_resets(echo: int) -> None:
    cable = Cable(("127.0.0.1", echo))
    try:
        with socket.create_connection(("127.0.0.1", cable.port), timeout=5) as near:
            near.sendall(b"hello")
            assert near.recv(5) == b"hello"
            cable.cut()
            with pytest.raises(ConnectionResetError):
                near.recv(1)
        with pytest.raises(ConnectionResetError), socket.create_connection(("127.0.0.1", cable.port), timeout=5) as refused:
            refused.recv(1)
        cable.plug()
        with socket.create_connection(("127.0.0.1", cable.port), timeout=5) as again:
            again.sendall(b"back")
            assert again.recv(4) == b"back"
        assert cable.bytes_relayed >= 14  # the last answer may be counted a moment after it has arrived
    finally:
        cable.close()
