"""`covey demo` as a child process, as a user would run it."""

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.end_to_end.processes import FAMILY, living_family, log_ends

COVEY = str(Path(sys.executable).parent / "covey")


@dataclass
class DemoProcess:
    """One run of the demo in a folder of its own."""

    folder: Path  # holds the work folder, the report and what it printed
    words: Sequence[str]
    mark: str = field(default_factory=lambda: secrets.token_hex(8))
    process: subprocess.Popen[bytes] | None = None

    @property
    def work_dir(self) -> Path:
        """The demo's own folder."""
        return self.folder / "work"

    @property
    def report(self) -> Path:
        """Where it writes its report."""
        return self.folder / "report.json"

    def start(self) -> None:
        """Start it in its own session, so that a signal to the tests is not one to it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        argv = [COVEY, "demo", *self.words, "--exit", "--report", str(self.report), "--workdir", str(self.work_dir)]
        with (self.folder / "demo.log").open("ab") as log:
            self.process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, FAMILY: self.mark, "COLUMNS": "160"},
                start_new_session=True,
            )

    def interrupt(self) -> None:
        """Ctrl-C."""
        self.running().send_signal(signal.SIGINT)

    def running(self) -> subprocess.Popen[bytes]:
        """The process."""
        assert self.process is not None, "the demo was not started"
        return self.process

    def wait(self, timeout_s: float) -> int:
        """Its exit code. Whatever happens, nothing of it is left running."""
        try:
            return self.running().wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the demo did not end in {timeout_s:.0f} s\n{self.explain()}") from None

    def end(self) -> None:
        """Stop what is left, for the tests that come after a failed one."""
        if self.running().poll() is not None:
            return
        self.interrupt()
        try:
            self.running().wait(30)
        except subprocess.TimeoutExpired:
            self.running().kill()  # its children die with it
            self.running().wait()

    def left_over(self) -> list[str]:
        """Processes of it that still run."""
        return living_family(self.mark, self.work_dir)

    def output(self) -> str:
        """Everything that it printed."""
        return (self.folder / "demo.log").read_text("utf-8", "replace")

    def explain(self) -> str:
        """What it said last, and the ends of the logs of its processes."""
        said = "\n".join(self.output().splitlines()[-40:])
        logs = (self.work_dir / "logs", self.work_dir / "server" / "logs")
        return "\n".join([said, *(log_ends(folder) for folder in logs)])


@dataclass(frozen=True, slots=True)
class Told:
    """A demo that has ended."""

    code: int
    report: dict[str, Any]
    work_dir: Path
    left_over: list[str]
    output: str
    explanation: str

    @property
    def database(self) -> Path:
        """The server's database, as the demo left it."""
        return self.work_dir / "server" / "fleet.db"


def tell(folder: Path, words: Sequence[str], *, timeout_s: float) -> Told:
    """Run the demo to its end."""
    demo = DemoProcess(folder, words)
    demo.start()
    try:
        code = demo.wait(timeout_s)
        deadline = time.monotonic() + 5  # a killed process needs a moment to vanish
        while demo.left_over() and time.monotonic() < deadline:
            time.sleep(0.1)
        report = json.loads(demo.report.read_text("utf-8")) if demo.report.exists() else {}
        return Told(code, report, demo.work_dir, demo.left_over(), demo.output(), demo.explain())
    finally:
        demo.end()
