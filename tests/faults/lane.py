"""One device in a sweep: its state directory, its agent's lives, and what can be seen of it from outside."""

import hashlib
import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from tests.fakes.agent.daemon import make_identity
from tests.fakes.nats_broker import RunningBroker, running_broker, wait_until
from tests.faults.fleet import Fleet
from tests.faults.prober import FINDING
from tests.faults.shim import Control, compile_shim
from tests.faults.trainer import NOTES, read_notes

from covey_agent.client import Client, ClientError
from covey_agent.workers.probe import probe
from covey_contract.codec import encode

QUICK = {
    "COVEY_AGENT_READINGS_SYSTEM_INTERVAL_S": "0",
    "COVEY_AGENT_READINGS_SEND_INTERVAL_S": "0.05",
    "COVEY_AGENT_READINGS_ACK_TIMEOUT_S": "2",
    "COVEY_AGENT_READINGS_FLUSH_INTERVAL_S": "0.3",
    "COVEY_AGENT_DEPLOY_RESERVE_MB": "0",
    "COVEY_AGENT_BROKER_RECONNECT_SPREAD_S": "0.3",
}
END_S = 60.0


class Life:
    """One agent process, or one run of an agent's command."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._answers = connection.makefile("rb")
        self.pid = int(self._answers.readline())
        self.code: int | None = None

    @property
    def is_over(self) -> bool:
        """Whether it has ended."""
        if self.code is None:
            try:
                self._connection.setblocking(False)
                line = self._answers.readline()
            except BlockingIOError:
                return False
            finally:
                self._connection.setblocking(True)
            if line:
                self.code = int(line)
                self._answers.close()
                self._connection.close()
        return self.code is not None

    def wait(self) -> int:
        """Until it ends by itself."""
        wait_until(lambda: self.is_over, what=f"the end of process {self.pid}", timeout_s=END_S)
        return self.code if self.code is not None else -1

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send a signal, wait, and return the exit code."""
        if not self.is_over:
            os.kill(self.pid, number)
        return self.wait()


class Warm:
    """The process that forks agents."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "warm.sock"
        environment = os.environ | {"LD_PRELOAD": str(compile_shim(folder)), "PYTHONWARNINGS": "ignore"}
        command = [sys.executable, "-m", "tests.faults.warm", str(self._path)]
        self._process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2])
        assert self._process.stdout is not None
        self.threads = int(self._process.stdout.readline() or b"0")
        assert self.threads == 1, f"expected one thread before the first fork, found {self.threads}"

    def start(self, arguments: list[str], *, role: str, control: Path | None, log: Path, environment: Mapping[str, str]) -> Life:
        """Fork an agent."""
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(str(self._path))
        request = {
            "arguments": arguments,
            "role": role,
            "control": str(control) if control else "",
            "log": str(log),
            "environment": dict(environment),
        }
        connection.sendall(json.dumps(request).encode() + b"\n")
        return Life(connection)

    def close(self) -> None:
        """End it, and with it everything that it started."""
        self._process.kill()
        self._process.wait(END_S)
        if self._process.stdout:
            self._process.stdout.close()


@dataclass
class Lane:
    """A device whose state directory is made anew for every point from a template."""

    names: list[str]  # of devices, taken in turn: a broker may still deliver what it had kept for the last one
    folder: Path
    fleet: Fleet
    warm: Warm
    broker: RunningBroker
    templates: dict[str, Path] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    memory: dict[str, str] = field(default_factory=dict)  # a scenario's own
    settings: Mapping[str, str] = field(default_factory=dict)  # environment variables of a scenario
    life: Life | None = None

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True)
        self.template = self.folder  # of the case that runs
        self.name = self.names[0]
        self.state_dir = self.folder / "state"
        self.control = Control(self.folder / "control", folder=self.state_dir, log=self.folder / "calls.log")
        self.log = self.folder / "agent.log"
        self.environment = QUICK | {FINDING: str(self.folder.parent / "probed.json"), NOTES: str(self.folder / "rounds")}

    @property
    def heard(self) -> Any:
        """What the server heard."""
        return self.fleet.heard(self.name)

    @property
    def rounds(self) -> dict[int, str]:
        """What the trainer was allowed."""
        return read_notes(self.folder / "rounds")

    def reset(self, template: Path | None, *, generation: int = 10) -> None:
        """A device as it was when the template was made, under a new name."""
        self.fleet.forget(self.name, generation=generation)
        self.name = self.names[self.names.index(self.name) + 1]
        self.fleet.forget(self.name, generation=generation)
        self.control.disarm()
        self.control.forget()
        self.memory.clear()
        self.settings = {}
        for path in (self.log, self.folder / "rounds"):
            path.unlink(missing_ok=True)
        shutil.rmtree(self.state_dir, ignore_errors=True)
        if template is not None:
            shutil.copytree(template, self.state_dir, symlinks=True)
        self.enrol()

    def enrol(self) -> None:
        """Give it its identity."""
        make_identity(self.state_dir, self.broker, self.name)
        self.fleet.repository.enrol(self.state_dir)

    def start(self, *arguments: str, role: str = "agent") -> Life:
        """Start the daemon, or another command of the agent."""
        words = list(arguments or ("run",))
        command = [words[0], "--state-dir", str(self.state_dir), *words[1:]]
        self.life = self.warm.start(
            command, role=role, control=self.control.path, log=self.log, environment=self.environment | dict(self.settings)
        )
        return self.life

    def stop(self, number: int = signal.SIGTERM) -> int:
        """End the agent and wait until the broker has told."""
        if self.life is None:
            return 0
        code = self.life.end(number)
        self.fleet.wait_offline(self.name)
        self.life = None
        return code

    def wait_for_report(self, *, after: int = 0) -> bool:
        """Whether the device says in time that it serves, in a report later than the first `after`."""
        return wait_for(lambda: len(self.heard.reports) > after and self.heard.reports[-1].serving, timeout_s=END_S)

    def ask(self, images: Any, *, timeout_s: float = 10.0) -> int:
        """Have the local API answer; returns the version that did."""
        with Client(self.state_dir / "run" / "infer.sock", timeout_s=timeout_s) as client:
            client.infer(images)
            return int(client.model()["version"])

    def strike(self, images: Any) -> None:
        """Send what a poisoned model does not survive."""
        try:
            self.ask(images, timeout_s=2.0)
        except ClientError:
            return

    def last_words(self) -> str:
        """The end of the agent's log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-25:]) if self.log.exists() else ""

    # -- the state directory, read without touching it --

    @contextmanager
    def database(self) -> Iterator[sqlite3.Connection | None]:
        """A copy of the state database as it would be found by the next start."""
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            for name in ("state.db", "state.db-wal"):
                if (self.state_dir / name).exists():
                    shutil.copy(self.state_dir / name, folder)
            path = Path(folder) / "state.db"
            if not path.exists():
                yield None
                return
            connection = sqlite3.connect(path)
            try:
                yield connection
            finally:
                connection.close()

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        """Rows of the state database; none if there is no such table yet."""
        with self.database() as connection:
            if connection is None:
                return []
            try:
                return connection.execute(sql).fetchall()
            except sqlite3.DatabaseError:
                return []

    def value(self, key: str) -> Any:
        """One stored value."""
        rows = self.rows(f"SELECT data FROM value WHERE key = '{key}'")  # noqa: S608 - a key of ours
        return json.loads(rows[0][0]) if rows else None

    def durable_readings(self) -> set[tuple[str, int]]:
        """(epoch, number) of everything on disk that waits for the server."""
        epoch = self.rows("SELECT data FROM value WHERE key = 'epoch'")
        return {(epoch[0][0].decode(), number) for (number,) in self.rows("SELECT sequence FROM reading")} if epoch else set()

    def snapshot(self) -> dict[str, Any]:
        """What must not change by itself: decisions, ledger, models, identity."""
        values = {str(key): data for key, data in self.rows("SELECT key, data FROM value") if key not in ("time", "capabilities")}
        return {
            **{f"value {key}": data for key, data in values.items()},
            "ledger": self.rows("SELECT run, round, dataset, plan, at FROM ledger ORDER BY id"),
            "lost": self.rows("SELECT * FROM lost"),
            **{f"file {path}": digest for path, digest in _digests(self.state_dir, ("slots", "identity", "fetch", "tuf"))},
            "ledger.jsonl": _content(self.state_dir / "ledger.jsonl"),
        }


@contextmanager
def open_lanes(count: int, *, folder: Path, names: int) -> Iterator[list[Lane]]:
    """A broker, a server, a warm process and devices. Each lane has that many names, one for each case that it runs."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "lanes").mkdir()
    (folder / "lanes" / "probed.json").write_bytes(encode(probe()))
    warm = Warm(folder)
    try:
        devices = [[f"kill-{lane}-{number}" for number in range(names)] for lane in range(count)]
        with running_broker(folder / "server", devices=chain.from_iterable(devices)) as broker, Fleet(broker) as fleet:
            lanes = [Lane(own, folder / "lanes" / own[0], fleet, warm, broker) for own in devices]
            try:
                yield lanes
            finally:
                for lane in lanes:
                    if lane.life is not None and not lane.life.is_over:
                        lane.life.end(signal.SIGKILL)
                broker.process.stop(signal.SIGKILL)  # a clean stop would tidy up the sessions of thousands of devices
    finally:
        warm.close()


def fast_folder() -> Path | None:
    """Where a sync costs nothing, which changes nothing for a process that is killed; None: the usual place for temporary files."""
    path = Path("/dev/shm")
    return path if path.is_dir() and os.access(path, os.W_OK) and shutil.disk_usage(path).free > 1 << 30 else None


def wait_for(condition: Callable[[], object], *, timeout_s: float) -> bool:
    """Whether it came true in time."""
    try:
        wait_until(condition, what="a condition", timeout_s=timeout_s)
    except AssertionError:
        return False
    return True


def _digests(root: Path, folders: tuple[str, ...]) -> list[tuple[str, str]]:
    found = []
    for folder in folders:
        for path in sorted((root / folder).rglob("*")):
            if path.is_file():
                found.append((str(path.relative_to(root)), hashlib.sha256(path.read_bytes()).hexdigest()))
    return found


def _content(path: Path) -> bytes:
    return path.read_bytes() if path.exists() else b""
