"""A network cable that can be pulled: a TCP relay between one device and the broker.

The demo plugs one device in through it, so that cutting the device off is a real loss of the network for a real process: open
connections are reset and new ones are refused, until the cable is plugged in again.
"""

import contextlib
import selectors
import socket
import struct
import threading

_RESET = struct.pack("ii", 1, 0)  # SO_LINGER with 0 seconds: close sends RST, as a dead link would look to both ends


class Cable:
    """Relays connections from a free loopback port to `target`; runs in its own thread until `close`."""

    def __init__(self, target: tuple[str, int]) -> None:
        self._target = target
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._server.getsockname()[1]
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._server, selectors.EVENT_READ, None)
        self._pairs: dict[socket.socket, socket.socket] = {}
        self._cut = threading.Event()
        self._closed = threading.Event()
        self.bytes_relayed = 0
        self._thread = threading.Thread(target=self._run, name="cable", daemon=True)
        self._thread.start()

    def cut(self) -> None:
        """Pull the cable."""
        self._cut.set()

    def plug(self) -> None:
        """Plug it in again."""
        self._cut.clear()

    def close(self) -> None:
        """Stop relaying for good."""
        self._closed.set()
        self._thread.join(timeout=5)
        self._server.close()

    def _run(self) -> None:
        while not self._closed.is_set():
            if self._cut.is_set():
                for end in list(self._pairs):
                    self._drop(end)
            for key, _ in self._selector.select(timeout=0.1):
                if key.fileobj is self._server:
                    self._accept()
                elif isinstance(key.fileobj, socket.socket) and key.fileobj in self._pairs:
                    self._relay(key.fileobj)
        for end in list(self._pairs):
            self._drop(end)

    def _accept(self) -> None:
        near, _ = self._server.accept()
        if self._cut.is_set():
            near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            near.close()
            return
        try:
            far = socket.create_connection(self._target, timeout=5)
        except OSError:
            near.close()
            return
        for one, other in ((near, far), (far, near)):
            self._pairs[one] = other
            self._selector.register(one, selectors.EVENT_READ, None)

    def _relay(self, end: socket.socket) -> None:
        other = self._pairs[end]
        try:
            data = end.recv(65536)
            if not data:
                self._drop(end)
                return
            other.sendall(data)
            self.bytes_relayed += len(data)
        except OSError:
            self._drop(end)

    def _drop(self, end: socket.socket) -> None:
        other = self._pairs.pop(end, None)
        for one in (end, other):
            if one is None:
                continue
            self._pairs.pop(one, None)
            with contextlib.suppress(KeyError, ValueError):
                self._selector.unregister(one)
            with contextlib.suppress(OSError):
                one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            one.close()
