"""The demo's processes: server, agents, applications. Each is a real program in its own session, with its own log.

Ctrl-C reaches only the demo, which then stops them in order; if the demo is killed, the kernel ends them (PR_SET_PDEATHSIG).
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from covey_server.errors import UnavailableError
from covey_server.supervisor import describe_exit, die_with_parent

_AGENTS_STOP_S = 8.0
_BIN = Path(sys.executable).parent  # where `covey` and `covey-agent` are, next to this Python


def program(name: str) -> str:
    """The path of one of Covey's own commands."""
    return str(_BIN / name)


@dataclass
class Troupe:
    """Every process of the demo."""

    log_dir: Path
    _running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    _calls: list[subprocess.Popen[str]] = field(default_factory=list)

    def start(self, name: str, argv: Sequence[str], *, cwd: Path | None = None, env: dict[str, str] | None = None) -> int:
        """Start a program and return its process id."""
        self.log_dir.mkdir(parents=True, exist_ok=True)
        with (self.log_dir / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                list(argv),
                cwd=cwd,
                env={**os.environ, **(env or {})},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=die_with_parent,  # noqa: PLW1509 - called from the main thread only
            )
        self._running[name] = process
        return process.pid

    def call(self, name: str, argv: Sequence[str], *, timeout_s: float, cwd: Path | None = None) -> str:
        """Run a program to its end and return what it printed. Raises UnavailableError with its words if it failed."""
        process = subprocess.Popen(
            list(argv), cwd=cwd, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        self._calls.append(process)
        try:
            output, errors = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired as exc:
            raise UnavailableError(f"{name} did not end in {timeout_s:.0f} s") from exc
        finally:
            self._calls.remove(process)
            if process.poll() is None:
                process.kill()
                process.communicate()
        if process.returncode != 0:
            words = (errors or output).strip()[-600:]
            raise UnavailableError(f"{name} failed ({describe_exit(process.returncode)}): {words}")
        return output

    def cut_calls(self) -> None:
        """End what `call` runs in other threads, so that nobody has to wait for it."""
        for process in list(self._calls):
            process.kill()

    def is_running(self, name: str) -> bool:
        """Whether a program still runs."""
        process = self._running.get(name)
        return process is not None and process.poll() is None

    def pid(self, name: str) -> int:
        """The process id of a program."""
        return self._running[name].pid

    def check(self) -> None:
        """Raise UnavailableError if a program has ended that should run."""
        for name, process in self._running.items():
            code = process.poll()
            if code is not None:
                raise UnavailableError(f"{name} ended ({describe_exit(code)}); its log: {self.log_dir / f'{name}.log'}")

    def stop(self, name: str, *, timeout_s: float = 15.0) -> None:
        """Ask a program to stop and wait; kill it if it does not."""
        process = self._running.pop(name, None)
        if process is None or process.poll() is not None:
            return
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def stop_all(self) -> None:
        """Stop everything, last started first: applications, agents, server. Signals go out together, so that it is quick.

        An agent that is in the middle of a round may take its time to leave Flower; here nobody waits for that, and what it
        started ends with it.
        """
        names = list(reversed(self._running))
        for name in names:
            process = self._running[name]
            if name != "server" and process.poll() is None:
                process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + _AGENTS_STOP_S
        for name in names:
            self.stop(name, timeout_s=15.0 if name == "server" else max(0.1, deadline - time.monotonic()))
