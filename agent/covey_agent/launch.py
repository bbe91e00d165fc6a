"""`covey-agent-launch`: starts the current version of the agent, and goes back to the version before if a new one proves no good.

    covey-agent-launch run --state-dir /var/lib/covey-agent       what the service runs
    covey-agent-launch status                                     any other command, by the current version

Rules:
- It belongs to the first installation and is never upgraded itself; of the standard library alone, so that nothing an upgrade brings can
  break it.
- A proven version is started by exec: the launcher then costs nothing and the agent is the service's main process.
- A version on trial is a child. Its signs of life come through here: proven is one that says READY, gets its connection if the version
  before had one, and lives on for a while. What ends, hangs or stays dumb before has failed a start; after `max_starts`, or at once if
  it refuses its settings (exit code 2), the version before comes back, whoever did or did not kill what.
- Every start is counted on disk before it is made, so that a version that takes the machine down with it counts too.
- Exit codes 6 (another agent runs) and 8 (decommissioned) and a stop that was asked for say nothing about a version.
"""

import contextlib
import ctypes
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import NoReturn

from covey_agent.trial import End, Limits, Signs, judge_end
from covey_agent.versions import EXIT_RESTART, LAUNCHER_VARIABLE, PARENT, Versions, count_start, fall_back, prove
from covey_agent.versions_file import VersionsFile

DEFAULT_STATE_DIR = "/var/lib/covey-agent"
KILL_GRACE_S = 40.0  # for an agent that was asked to stop; it gives its children 10
PR_SET_PDEATHSIG = 1
POLL_S, POLL_PROVEN_S = 0.5, 10.0  # how often deadlines are looked at; an end and a message are noticed at once


class Outer:
    """The service manager above, if there is one."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        address = environment.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        period = environment.get("WATCHDOG_USEC", "")
        self.beat_s = int(period) / 4e6 if period.isdecimal() else 0.0

    def tell(self, message: bytes) -> None:
        """One datagram; nobody listening is no error."""
        if self._address:
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                sock.settimeout(1.0)
                sock.sendto(message, self._address)


@dataclass(frozen=True, slots=True)
class Next:
    """What follows a trial: an exit code, or a version to become; without either, whatever the file says then."""

    code: int | None = None
    version: str | None = None


class TrialRun:
    """One version on trial, from start to start, until it is proven or given up."""

    def __init__(self, file: VersionsFile, arguments: list[str], environment: Mapping[str, str]) -> None:
        self._file = file
        self._arguments = arguments
        self._environment = environment
        self._limits = Limits.read(environment)
        self._outer = Outer(environment)
        self._process: subprocess.Popen[bytes] | None = None
        self._asked_to_stop = False
        self._proven = False
        self._wake, wake = socket.socketpair()
        for sock in (self._wake, wake):
            sock.setblocking(False)
        self._wake_writer = wake
        signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
            signal.signal(number, self._hand_on)

    def run(self) -> Next:
        """Start it until it is proven and ends, or is given up."""
        version = self._file.load().current
        while True:
            try:
                trial = self._file.change(count_start).trial
            except OSError as exc:  # a start that cannot be counted might be one of very many
                return self._give_up(version, f"its start could not be noted: {exc.strerror}")
            if trial is None:
                return Next()
            if trial.starts > self._limits.max_starts:
                return self._give_up(version, f"{self._limits.max_starts} starts ended before it had proven itself")
            self._say(f"version {version} is on trial, start {trial.starts} of {self._limits.max_starts}")
            self._outer.tell(f"EXTEND_TIMEOUT_USEC={int((self._limits.start_s + 60) * 1e6)}\nWATCHDOG=1".encode())
            end = self._start(version, needs_connection=trial.was_connected)
            if not end.counts:
                self._note(lambda versions: count_start(versions, -1))
            if not end.fault:
                return Next(code=None if end.code == EXIT_RESTART else end.code)
            self._say(f"version {version} failed a start: {end.fault}")
            if end.at_once or trial.starts >= self._limits.max_starts:
                return self._give_up(version, end.fault)
            time.sleep(self._limits.pause_s)

    def _give_up(self, version: str, reason: str) -> Next:
        after = self._note(lambda versions: fall_back(versions, reason, at=time.time_ns() // 1_000_000))
        self._say(f"version {version} is given up: {reason}; {after.current or 'the first installation'} is started again")
        return Next(version=after.current)

    def _note(self, rule: Callable[[Versions], Versions]) -> Versions:
        """Change the file; where the disk takes nothing, what follows from the change is done all the same, and again next time."""
        try:
            return self._file.change(rule)
        except OSError as exc:
            self._say(f"{self._file.folder} cannot be written: {exc.strerror}")
            return rule(self._file.load())

    def _start(self, version: str, *, needs_connection: bool) -> End:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as inner:
            inner.bind("")  # the kernel picks a free abstract name
            inner.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
            environment = dict(self._environment) | {
                "NOTIFY_SOCKET": "@" + inner.getsockname()[1:].decode("ascii"),
                "WATCHDOG_USEC": str(int(self._limits.silence_s * 1e6)),
                LAUNCHER_VARIABLE: PARENT,
            }
            environment.pop("WATCHDOG_PID", None)
            try:
                self._process = subprocess.Popen(
                    command_of(self._file, version, self._arguments),
                    env=environment,
                    preexec_fn=_die_with_parent,  # noqa: PLW1509  # no thread runs here
                )
            except OSError as exc:
                return End(1, f"it cannot be started: {exc.strerror}", at_once=True)
            signs = Signs(self._limits, needs_connection=needs_connection, started=time.monotonic())
            why = self._watch(inner, self._process, signs)
            code = self._process.wait()
        return judge_end(code, why_killed=why, proven=self._proven, asked_to_stop=self._asked_to_stop, restart_code=EXIT_RESTART)

    def _watch(self, inner: socket.socket, process: "subprocess.Popen[bytes]", signs: Signs) -> str:
        """Until it ends. Returns why it was killed, or ""."""
        told = stop_at = 0.0
        why = ""
        while process.poll() is None:
            if lines := self._hear(inner, process.pid):
                signs.hear(lines, time.monotonic())
            now = time.monotonic()
            if self._outer.beat_s and now - told >= self._outer.beat_s:
                self._outer.tell(b"WATCHDOG=1")  # the agent's own beats are watched here
                told = now
            if self._asked_to_stop:
                stop_at = stop_at or now + KILL_GRACE_S
                fault = "it did not stop when asked to" if now > stop_at else ""
            else:
                fault = signs.find_fault(now, proven=self._proven)
            if fault:
                why = why or fault
                process.kill()
            elif not self._proven and signs.is_proven(now):
                self._proven = True
                self._note(prove)
                self._say("the version is proven and stays")
        return why

    def _hear(self, inner: socket.socket, pid: int) -> list[bytes]:
        """What the agent itself says next, in lines; handed on, but for what would end or feed the service above."""
        wait_s = min(POLL_PROVEN_S if self._proven else POLL_S, self._outer.beat_s or POLL_PROVEN_S)
        readable, _, _ = select.select([inner, self._wake], [], [], wait_s)
        if self._wake in readable:
            with contextlib.suppress(BlockingIOError):
                self._wake.recv(4096)
        if inner not in readable:
            return []
        message, ancillary, _, _ = inner.recvmsg(8192, socket.CMSG_SPACE(12))
        sender = next((int.from_bytes(data[:4], sys.byteorder) for _, kind, data in ancillary if kind == socket.SCM_CREDENTIALS), 0)
        if sender != pid:
            return []
        lines = message.split(b"\n")
        kept = [line for line in lines if not line.startswith((b"WATCHDOG", b"X_COVEY", b"MAINPID"))]
        if kept and (self._asked_to_stop or b"STOPPING=1" not in kept):
            self._outer.tell(b"\n".join(kept))
        return lines

    def _hand_on(self, number: int, _frame: FrameType | None) -> None:
        if number in {signal.SIGTERM, signal.SIGINT}:
            self._asked_to_stop = True
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)
        elif self._asked_to_stop:
            raise SystemExit(0)

    def _say(self, text: str) -> None:
        sys.stderr.write(f"covey-agent-launch: {text}\n")
        sys.stderr.flush()
        self._outer.tell(f"STATUS={text}".encode())


def main() -> None:
    """The command."""
    arguments = sys.argv[1:]
    file = VersionsFile(find_state_dir(arguments, os.environ))
    is_run = next((word for word in arguments if not word.startswith("-")), "") == "run"
    then = TrialRun(file, arguments, os.environ).run() if is_run and file.load().trial is not None else Next()
    if then.code is not None:
        raise SystemExit(then.code)
    versions = file.load()
    if is_run and then.version is None and versions.trial is not None:  # it was asked to start anew, and there is a newer one meanwhile
        again = own_command(arguments)
        os.execv(again[0], again)  # noqa: S606  # our own command
    start_current(file, versions.current if then.version is None else then.version, arguments)


def start_current(file: VersionsFile, version: str, arguments: list[str]) -> NoReturn:
    """Become the agent."""
    command = command_of(file, version, arguments)
    if version and not Path(command[0]).exists():
        sys.stderr.write(f"covey-agent-launch: version {version} is not in {file.folder}; the first installation is started\n")
        command = command_of(file, "", arguments)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    os.execve(command[0], command, dict(os.environ) | {LAUNCHER_VARIABLE: json.dumps(own_command(arguments))})  # noqa: S606  # our own command


def command_of(file: VersionsFile, version: str, arguments: list[str]) -> list[str]:
    """The agent's command of one version. -P: what lies in the working directory is not imported."""
    python = str(file.python(version)) if version else sys.executable
    return [python, "-P", "-m", "covey_agent.cli", *arguments]


def own_command(arguments: list[str]) -> list[str]:
    """This program again."""
    return [sys.executable, "-P", "-m", "covey_agent.launch", *arguments]


def find_state_dir(arguments: list[str], environment: Mapping[str, str]) -> Path:
    """As the agent itself finds it."""
    given = ""
    for word, following in zip(arguments, [*arguments[1:], ""], strict=True):
        if word == "--state-dir":
            given = following
        elif word.startswith("--state-dir="):
            given = word.partition("=")[2]
    return Path(given or environment.get("COVEY_AGENT_STATE_DIR") or DEFAULT_STATE_DIR).expanduser().absolute()


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    main()
