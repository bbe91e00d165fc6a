"""Several requests under way on one connection to the local API, answered in their order: HTTP/1.1 pipelining, for `Client.stream`.

Writing and reading go on at once, so that neither side can wait for the other for ever, however large requests and answers are.
"""

import select
import socket
import time
from collections import deque

Message = tuple[bytes, bytes | memoryview]  # head and body of a request
RawAnswer = tuple[int, dict[str, str], bytes]  # status, headers with names in lower case, body
_READ_BYTES = 256 * 1024
_MAX_HEAD_BYTES = 64 * 1024


class Ahead:
    """Sends what it is given as fast as the other side takes it, and collects answers meanwhile."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._sock.setblocking(False)
        self._poll = select.poll()
        self._out: deque[memoryview] = deque()
        self._in = bytearray()

    def send(self, message: Message) -> None:
        """Queue one request."""
        self._out.extend(memoryview(part) for part in message if part)
        self._write()

    def receive(self, deadline: float) -> RawAnswer:
        """The next answer. Raises OSError if the connection ends, or TimeoutError."""
        while (answer := self._cut()) is None:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError("no answer in time")
            self._poll.register(self._sock, select.POLLIN | (select.POLLOUT if self._out else 0))
            for _, event in self._poll.poll(left * 1000):
                if event & select.POLLOUT:
                    self._write()
                if event & ~select.POLLOUT:
                    self._read()
        return answer

    def _write(self) -> None:
        while self._out:
            try:
                sent = self._sock.send(self._out[0])
            except BlockingIOError:
                return
            self._out[0] = self._out[0][sent:]
            if not self._out[0]:
                self._out.popleft()

    def _read(self) -> None:
        try:
            data = self._sock.recv(_READ_BYTES)
        except BlockingIOError:
            return
        if not data:
            raise ConnectionError("the connection ended before an answer")
        self._in += data

    def _cut(self) -> RawAnswer | None:
        end = self._in.find(b"\r\n\r\n")
        if end < 0:
            if len(self._in) > _MAX_HEAD_BYTES:
                raise ConnectionError("the answer has no head")
            return None
        first, *lines = self._in[:end].decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        stop = end + 4 + int(headers.get("content-length", "0"))
        if len(self._in) < stop:
            return None
        body = bytes(self._in[end + 4 : stop])
        del self._in[:stop]
        return int(first.split(" ")[1]), headers, body
