"""Real child programs of the agent, started as the agent starts them, with their events as they come."""

import os
import queue
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import msgspec

from covey_agent.core.jobs import ChildEvent, Job, Order

E = TypeVar("E")


class Child:
    """`python -m covey_agent.workers.<name>` with a job; events arrive in `events`."""

    def __init__(self, name: str, job: Job, *, pass_fds: Sequence[int] = ()) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", f"covey_agent.workers.{name}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=tuple(pass_fds),
            env=os.environ | {"PYTHONWARNINGS": "default"},
        )
        self.log = ""
        self.events: queue.Queue[ChildEvent | None] = queue.Queue()
        self._threads = [threading.Thread(target=self._read_events, daemon=True), threading.Thread(target=self._read_log, daemon=True)]
        for thread in self._threads:
            thread.start()
        self._send(msgspec.json.encode(job))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.kill()
        if self.process.stdin:
            self.process.stdin.close()
        for thread in self._threads:
            thread.join(5)
        for stream in (self.process.stdout, self.process.stderr):
            if stream:
                stream.close()

    def order(self, order: Order) -> None:
        """Give an order."""
        self._send(msgspec.json.encode(order))

    def wait_for(self, kind: type[E], *, timeout_s: float = 30.0) -> E:
        """The next event of a kind; others before it are dropped. Fails if the child ends first."""
        deadline = time.monotonic() + timeout_s
        while True:
            event = self.events.get(timeout=max(deadline - time.monotonic(), 0.001))
            if isinstance(event, kind):
                return event
            if event is None:
                self._threads[1].join(5)
                raise AssertionError(f"the child ended with {self.process.wait(5)} before {kind.__name__}:\n{self.log}")

    def rest(self, *, timeout_s: float = 30.0) -> list[ChildEvent]:
        """All events until the child ends by itself."""
        events = []
        while (event := self.events.get(timeout=timeout_s)) is not None:
            events.append(event)
        self.process.wait(timeout_s)
        return events

    def kill(self) -> None:
        """kill -9, and wait."""
        self.process.kill()
        self.process.wait(10)

    def _send(self, line: bytes) -> None:
        stdin = self.process.stdin
        assert stdin is not None
        stdin.write(line + b"\n")
        stdin.flush()

    def _read_events(self) -> None:
        assert self.process.stdout is not None
        decoder = msgspec.json.Decoder(ChildEvent)
        for line in self.process.stdout:
            self.events.put(decoder.decode(line))
        self.events.put(None)

    def _read_log(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log += line.decode(errors="replace")


def listen_unix(path: Path) -> socket.socket:
    """A listening socket as the agent owns it."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.bind(str(path))
    sock.listen(128)
    return sock
