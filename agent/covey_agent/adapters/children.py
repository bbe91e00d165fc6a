"""Child programs: start, listen, send, kill. What native code does to a child ends here as a reason in words.

Rules:
- A child's output is read by threads of its own that only put events into the inbox; a child that prints garbage costs a log line.
- Its end is told once, after everything that it wrote, with a reason: an exit code, a signal's name, or why the agent killed it.
- No child outlives the agent: each asks the kernel to die with its parent, and its standard input ends.
"""

import logging
import resource
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import msgspec

from covey_agent.adapters.oom import count_oom_kills
from covey_agent.core.jobs import ChildEvent, Order
from covey_agent.inbox import ChildEnded, ChildSpoke, Post
from covey_agent.ports import Child

logger = logging.getLogger(__name__)
MAX_LINE_BYTES = 1024 * 1024
TAIL_LINES = 5  # of standard error, kept for the reason
OOM_SCORE_ADJ = 500  # when memory runs out, the kernel shall take a child and not the agent
_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(ChildEvent)


class ProcessChild:
    """One child process with its two reader threads."""

    def __init__(
        self,
        number: int,
        program: str,
        process: subprocess.Popen[bytes],
        *,
        job: bytes,
        post: Post,
        forget: Callable[[int], None],
        oom_kills: Callable[[], int],
    ) -> None:
        self._number = number
        self._oom_kills = oom_kills
        self._oom_kills_before = oom_kills()
        self._job = job
        self._program = program
        self._process = process
        self._post = post
        self._forget = forget
        self._killed = ""
        self._tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._garbage = 0
        self._errors = threading.Thread(target=self._read_errors, name=f"{program}-stderr", daemon=True)
        self._events = threading.Thread(target=self._read_events, name=f"{program}-stdout", daemon=True)
        self._errors.start()
        self._events.start()

    @property
    def id(self) -> int:
        """Unique within this agent process; never reused, unlike a process id."""
        return self._number

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def program(self) -> str:
        """The worker's name, such as `infer`."""
        return self._program

    def send(self, order: Order) -> None:
        """One line to its standard input."""
        self._write_line(_encoder.encode(order))

    def _write_line(self, line: bytes) -> None:
        try:
            _stream(self._process.stdin).write(line + b"\n")
            _stream(self._process.stdin).flush()
        except (BrokenPipeError, ValueError):
            logger.debug("%s %d is gone, a line was not delivered", self._program, self._process.pid)

    def close_input(self) -> None:
        """Tell it to finish."""
        try:
            _stream(self._process.stdin).close()
        except BrokenPipeError:
            logger.debug("%s %d was gone already", self._program, self._process.pid)

    def kill(self, reason: str) -> None:
        """End it at once."""
        self._killed = self._killed or reason
        self._process.kill()

    def join(self, timeout_s: float) -> bool:
        """Wait for its end to be told. False: it still runs."""
        self._events.join(timeout_s)
        return not self._events.is_alive()

    def _read_events(self) -> None:
        self._write_line(self._job)  # here, because a job may be longer than a pipe holds, and the main thread must never wait
        stdout = _stream(self._process.stdout)
        while line := stdout.readline(MAX_LINE_BYTES):
            try:
                event = _decoder.decode(line)
            except msgspec.DecodeError as exc:
                self._garbage += 1
                log = logger.warning if self._garbage == 1 else logger.debug
                log("%s %d wrote a line that is no event (%d bytes): %s", self._program, self._process.pid, len(line), exc)
                continue
            self._post(ChildSpoke(self._number, event))
        stdout.close()
        code = self._process.wait()
        self._errors.join(1.0)
        self.close_input()
        self._forget(self._number)
        self._post(ChildEnded(self._number, self._describe_end(code), clean=code == 0 and not self._killed))

    def _read_errors(self) -> None:
        with _stream(self._process.stderr) as stderr:
            while line := stderr.readline(MAX_LINE_BYTES):
                text = line[:1000].decode("utf-8", "replace").rstrip()
                self._tail.append(text)
                logger.info("%s[%d] %s", self._program, self._process.pid, text)

    def _describe_end(self, code: int) -> str:
        if self._killed:
            return self._killed
        last = next((line for line in reversed(self._tail) if line), "")
        if code == -signal.SIGKILL and self._oom_kills() > self._oom_kills_before:
            return "killed by the kernel: out of memory"
        if code < 0:
            return f"killed by {_signal_name(-code)}"
        if code > 0:
            return f"ended with exit code {code}" + (f": {last[:200]}" if last else "")
        return "ended"


@dataclass(frozen=True, slots=True)
class StillbornChild:
    """A child that could not be started; its end is already in the inbox."""

    id: int
    program: str

    def send(self, order: Order) -> None:
        """Nobody listens."""

    def close_input(self) -> None:
        """Nothing to close."""

    def kill(self, reason: str) -> None:
        """Nothing to kill."""


class ProcessChildren:
    """Starts children as `python -m <package>.<program>` in their own process group, so that Ctrl-C reaches only the agent."""

    def __init__(
        self,
        post: Post,
        *,
        package: str = "covey_agent.workers",
        cwd: Path | None = None,
        oom_kills: Callable[[], int] = count_oom_kills,
    ) -> None:
        self._post = post
        self._oom_kills = oom_kills
        self._package = package
        self._cwd = cwd
        self._running: dict[int, ProcessChild] = {}
        self._lock = threading.Lock()
        self._next = 1

    def start(self, program: str, job: msgspec.Struct, *, pass_fds: Sequence[int] = (), memory_limit: int = 0) -> Child:
        """Start one child and hand it its job. Call from the main thread only: a child dies with the thread that started it.

        A machine that cannot start a process now (no memory, no process ids) looks like a child that ended at once.
        """
        number, self._next = self._next, self._next + 1
        try:
            process = self._spawn(program, pass_fds)
        except OSError as exc:
            self._post(ChildEnded(number, f"could not be started: {exc.strerror}", clean=False))
            return StillbornChild(number, program)
        _limit(process.pid, memory_limit)
        with self._lock:
            child = ProcessChild(
                number, program, process, job=_encoder.encode(job), post=self._post, forget=self._forget, oom_kills=self._oom_kills
            )
            self._running[number] = child
        logger.info("started %s as process %d", program, process.pid)
        return child

    def stop_all(self, *, grace_s: float) -> None:
        """Close every input, give them `grace_s` together to finish, then kill."""
        with self._lock:
            children = list(self._running.values())
        for child in children:
            child.close_input()
        waited = threading.Event()
        step_s = 0.05
        for _ in range(max(1, round(grace_s / step_s))):
            if all(child.join(0) for child in children):
                return
            waited.wait(step_s)
        for child in children:
            child.kill("the agent stopped")
        for child in children:
            child.join(5.0)

    def _spawn(self, program: str, pass_fds: Sequence[int]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-m", f"{self._package}.{program}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=tuple(pass_fds),
            start_new_session=True,
            cwd=self._cwd,
        )

    def _forget(self, number: int) -> None:
        with self._lock:
            self._running.pop(number, None)


def _limit(pid: int, memory_limit: int) -> None:
    """Bound a child's memory and offer it to the kernel's out-of-memory killer first. A child that has ended already is no error."""
    try:
        if memory_limit:
            # Not RLIMIT_AS: runtimes map much more address space than they use; RLIMIT_DATA counts private writable memory.
            resource.prlimit(pid, resource.RLIMIT_DATA, (memory_limit, memory_limit))
        Path(f"/proc/{pid}/oom_score_adj").write_text(str(OOM_SCORE_ADJ))
    except (OSError, AttributeError) as exc:
        logger.debug("could not limit process %d: %s", pid, exc)


def _stream(stream: IO[bytes] | None) -> IO[bytes]:
    if stream is None:
        raise ValueError("the process was started without this pipe")
    return stream


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
