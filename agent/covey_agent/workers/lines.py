"""The child's end of the line protocol: read the job, emit events, notice the parent's end.

    lines = Lines.take_over()
    job = lines.read_job(CheckJob)
    lines.emit(CheckPassed(relative_error=0.01, latency_ms=0.2))

Rules:
- Native libraries print what they like on file descriptor 1. So the real standard output is moved aside first and descriptor 1
  becomes standard error: nothing but an event can reach the agent.
- A child never outlives its agent: the kernel kills it when the parent dies (Linux), and the end of standard input tells it too,
  which also covers a parent that died before the kernel was asked.
"""

import ctypes
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import BinaryIO, NoReturn, TypeVar

import msgspec

from covey_agent.core.jobs import ChildEvent, Order

J = TypeVar("J", bound=msgspec.Struct)
MAX_LINE_BYTES = 1024 * 1024  # a job or an order; an order of the server is at most 128 KiB
EXIT_ABANDONED = 75  # EX_TEMPFAIL: the agent closed standard input, so the work was given up
EXIT_BAD_JOB = 64  # EX_USAGE
_PR_SET_PDEATHSIG = 1

logger = logging.getLogger(__name__)


class Lines:
    """One JSON object a line: the job and orders in, events out. `emit` may be called from any thread."""

    def __init__(self, incoming: BinaryIO, outgoing: BinaryIO) -> None:
        self._in = incoming
        self._buffer = b""
        self._out = outgoing
        self._lock = threading.Lock()
        self._encoder = msgspec.json.Encoder()

    @classmethod
    def take_over(cls) -> "Lines":
        """Own this process's standard streams, and die with its parent."""
        die_with_parent()
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole terminal; when a child ends is for the agent to say
        outgoing = os.fdopen(os.dup(1), "wb")
        os.set_inheritable(outgoing.fileno(), False)
        os.dup2(2, 1)
        logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
        # Not sys.stdin: a background thread that waits in it holds its lock, and the interpreter aborts when it cannot have that
        # lock at its end.
        return cls(open(0, "rb", buffering=0, closefd=False), outgoing)

    def read_job(self, kind: type[J]) -> J:
        """The first line. A job that is not one ends the process with EXIT_BAD_JOB: there is nobody to tell but the log."""
        line = self._read_line()
        try:
            return msgspec.json.decode(line, type=kind)
        except msgspec.DecodeError as exc:
            logger.warning("expected %s as the first line, got %d bytes: %s", kind.__name__, len(line), exc)
            raise SystemExit(EXIT_BAD_JOB) from exc

    def orders(self) -> Iterator[Order]:
        """Orders until the agent closes standard input; a line that is no order is logged and skipped."""
        decoder = msgspec.json.Decoder(Order)
        while line := self._read_line():
            try:
                yield decoder.decode(line)
            except msgspec.DecodeError as exc:
                logger.warning("expected an order, got %d bytes: %s", len(line), exc)

    def _read_line(self) -> bytes:
        """With its newline; what is left at the end of the stream without one; a longer line than allowed in pieces."""
        while b"\n" not in self._buffer and len(self._buffer) < MAX_LINE_BYTES:
            data = self._in.read(65536)
            if not data:
                line, self._buffer = self._buffer, b""
                return line
            self._buffer += data
        end = self._buffer.find(b"\n") + 1 or MAX_LINE_BYTES
        line, self._buffer = self._buffer[:end], self._buffer[end:]
        return line

    def emit(self, event: ChildEvent) -> None:
        """Tell the agent. If it no longer reads, the process ends: work that nobody hears of is waste."""
        line = self._encoder.encode(event) + b"\n"
        try:
            with self._lock:
                self._out.write(line)
                self._out.flush()
        except BrokenPipeError:
            os._exit(EXIT_ABANDONED)

    def become(self, module: str, order: msgspec.Struct) -> NoReturn:
        """Turn this process into another program of the same job, with the same streams, and nothing of this one left in memory.

        It finds the order by `take_order`. Raises OSError, and is then still this program.
        """
        descriptor = os.memfd_create("order", 0)  # 0: it stays open in the other program
        with open(descriptor, "wb", closefd=False) as file:
            file.write(msgspec.msgpack.encode(order))
        os.lseek(descriptor, 0, os.SEEK_SET)
        os.dup2(self._out.fileno(), 1)
        os.execv(sys.executable, [sys.executable, "-m", module, str(descriptor)])  # noqa: S606 - this program, and no shell wanted

    def abandon_at_end(self) -> None:
        """Watch standard input in the background and end the process at once when it ends. For work that any kill may interrupt."""

        def watch() -> None:
            for order in self.orders():
                logger.warning("this child takes no orders, got %s", type(order).__name__)
            logger.info("standard input has ended: giving up")
            os._exit(EXIT_ABANDONED)

        threading.Thread(target=watch, name="stdin", daemon=True).start()


def take_order(kind: type[J]) -> J:
    """What the program that this process was before has left. It is the same agent's, so a wrong one is a bug."""
    with os.fdopen(int(sys.argv[1]), "rb") as file:
        return msgspec.msgpack.decode(file.read(), type=kind)


def die_with_parent() -> None:
    """Ask the kernel to kill this process when the thread that started it ends. Elsewhere than on Linux: does nothing."""
    if sys.platform == "linux":
        prctl: Callable[..., int] = ctypes.CDLL(None, use_errno=True).prctl
        if prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0) != 0:
            logger.warning("the kernel refused to kill this process with its parent: %s", os.strerror(ctypes.get_errno()))
