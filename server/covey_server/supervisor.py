"""Keeping a set of child processes alive: start in order, wait until each is ready, restart with back-off, stop in reverse.

Each child writes to its own log file. A child dies with its parent, however the parent dies (PR_SET_PDEATHSIG), so that a
killed `covey up` leaves no orphan behind.
"""

import contextlib
import ctypes
import logging
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from covey_server.errors import UnavailableError
from covey_server.processes import ProcessSpec

logger = logging.getLogger(__name__)

_PR_SET_PDEATHSIG = 1
_BACKOFF_S = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
_LEFT_BEHIND_S = 1.0  # for what a stopped program had started
_STABLE_S = 60.0  # a child that lived this long starts again without back-off


@dataclass
class _Child:
    spec: ProcessSpec
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    failures: int = 0
    next_start: float = 0.0


@dataclass
class Supervisor:
    """Runs the given programs until told to stop."""

    specs: Sequence[ProcessSpec]
    log_dir: Path
    ready_timeout_s: float = 60.0
    on_change: Callable[[str, str], None] = lambda _name, _what: None  # (program, "starting" | "ready" | "ended: ...")
    is_wanted: Callable[[], bool] = lambda: True  # False ends a start that is under way, as Ctrl-C wants it
    _children: list[_Child] = field(default_factory=list)

    def start(self) -> None:
        """Start every program in order, each after the one before is ready; stop early when not wanted any more.

        Raises UnavailableError with the log's end.
        """
        self.log_dir.mkdir(parents=True, exist_ok=True)
        for spec in self.specs:
            if not self.is_wanted():
                return
            child = _Child(spec)
            self._children.append(child)
            self._spawn(child)
            self._await_ready(child)

    def poll(self) -> None:
        """Restart what has ended; call it about once a second."""
        now = time.monotonic()
        for child in self._children:
            if child.process is None:
                if now >= child.next_start:
                    self._spawn(child)
                continue
            code = child.process.poll()
            if code is None:
                continue
            child.failures = 0 if now - child.started > _STABLE_S else child.failures + 1
            delay = _BACKOFF_S[min(child.failures, len(_BACKOFF_S) - 1)]
            logger.warning("%s ended (%s); starting it again in %.1f s", child.spec.name, describe_exit(code), delay)
            self.on_change(child.spec.name, f"ended: {describe_exit(code)}")
            child.process = None
            child.next_start = now + delay

    def stop(self, *, timeout_s: float = 8.0) -> None:
        """Stop every program, last started first; what does not obey in time, and what a program leaves behind, is killed."""
        running = []
        families: list[psutil.Process] = []
        for child in reversed(self._children):
            process, child.process, child.next_start = child.process, None, float("inf")
            if process is not None:
                running.append((child.spec, process))
                families += _descendants(process.pid)  # now, because afterwards nobody knows whose they were
                if process.poll() is None:
                    process.send_signal(child.spec.stop_signal)
        deadline = time.monotonic() + timeout_s
        for spec, process in running:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                logger.warning("%s did not stop in %.0f s; killing it", spec.name, timeout_s)
            _kill_group(process.pid)
            process.wait()
        # Flower's helpers run in sessions of their own and end by themselves a moment after the SuperLink.
        for left in psutil.wait_procs(families, timeout=max(_LEFT_BEHIND_S, deadline - time.monotonic()))[1]:
            with contextlib.suppress(psutil.NoSuchProcess):
                left.kill()

    def pid_of(self, name: str) -> int | None:
        """The process id of a running program."""
        return next((child.process.pid for child in self._children if child.spec.name == name and child.process), None)

    def _spawn(self, child: _Child) -> None:
        spec = child.spec
        self.on_change(spec.name, "starting")
        with (self.log_dir / f"{spec.name}.log").open("ab") as log:
            child.process = subprocess.Popen(
                spec.argv,
                env={**os.environ, **spec.env},
                cwd=spec.cwd,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                process_group=0,  # Ctrl-C is for the supervisor alone, and a program's own children can be found
                preexec_fn=die_with_parent,  # noqa: PLW1509 - no threads run in this program before its children are started
            )
        child.started = time.monotonic()

    def _await_ready(self, child: _Child) -> None:
        deadline = time.monotonic() + self.ready_timeout_s
        while not child.spec.ready():
            if not self.is_wanted():
                return
            code = child.process.poll() if child.process else None
            if code is not None:
                raise UnavailableError(f"{child.spec.name} ended at once ({describe_exit(code)}): {self._log_end(child.spec.name)}")
            if time.monotonic() > deadline:
                raise UnavailableError(f"{child.spec.name} was not ready in {self.ready_timeout_s:.0f} s: {self._log_end(child.spec.name)}")
            time.sleep(0.05)
        self.on_change(child.spec.name, "ready")

    def _log_end(self, name: str) -> str:
        lines = (self.log_dir / f"{name}.log").read_text("utf-8", "replace").splitlines()
        return " | ".join(lines[-5:]) or "it wrote nothing"


def _descendants(pid: int) -> list[psutil.Process]:
    found: list[psutil.Process] = []
    with contextlib.suppress(psutil.NoSuchProcess):
        found += psutil.Process(pid).children(recursive=True)
    return found


def _kill_group(group: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


def describe_exit(code: int) -> str:
    """An exit code in words."""
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def die_with_parent() -> None:
    """In a child between fork and exec: have the kernel end it when its parent ends."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
