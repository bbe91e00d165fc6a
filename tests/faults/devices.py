"""Device scenarios of the kill harness: the real agent with its real children against a real broker, struck at one boundary.

One run: a copy of the scenario's template state gets an identity of its own, its order waits with the broker, the agent starts with
the strike planned, and once it has died it is started again without one. Then the rule is checked: the old model or the new one
serves, the device says which, nothing happened twice, nothing durable was lost, and nobody had to help.
"""

import contextlib
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
from tests.fakes.agent.daemon import QUICK, descendants, make_identity
from tests.fakes.nats_broker import RunningBroker, running_broker
from tests.fakes.poison import INK, Behaviour, wild_images
from tests.faults.server import Heard, ManyServer
from tests.faults.shim import Boundary, Fault, Strike, build_shim, plan_strike

from covey_agent.client import Client, ClientError
from covey_contract.messages import DeploymentState as State
from covey_contract.messages import Reading, ReleaseRef, Reported

PATIENCE_S = 60.0  # until a device must have converged; the machine may be busy
MAX_BOOTS = 3  # after the strike
ENVIRONMENT = {"COVEY_AGENT_READINGS_FLUSH_INTERVAL_S": "0.2", "COVEY_AGENT_READINGS_SYSTEM_INTERVAL_S": "0.2"}


class NotConvergedError(AssertionError):
    """A device did not come to rest as it must."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """What is being done when the fault strikes, and how it must end."""

    name: str
    template: str  # of Bench.templates
    order: Callable[["Bench", str], str]  # leaves the order for a device with the broker; returns the deployment's id
    ended: Callable[[Heard, str], bool]  # has it come to rest?
    serves: int = 0  # version that must answer at the end; 0: none
    result: str = ""  # the state of which at most one reading may exist
    wild: bool = False  # an application asks with input that sets the poison off


@dataclass
class Run:
    """One struck device."""

    device: str
    state_dir: Path
    boots: int = 0
    boundaries: list[Boundary] = field(default_factory=list)
    struck: bool = False
    durable: dict[tuple[str, int], Reading] = field(default_factory=dict)  # readings on disk right after the strike


class Bench:
    """A broker, a server, templates, and as many devices as runs need."""

    def __init__(self, folder: Path, broker: RunningBroker, server: ManyServer, shim: Path) -> None:
        self.folder = folder
        self.broker = broker
        self.server = server
        self.shim = shim
        self.releases: dict[int, ReleaseRef] = {}
        self._templates: dict[str, Path] = {}
        self._taken = 0
        self._lock = threading.Lock()

    def template(self, name: str) -> Path:
        """A device's state before the scenario begins; made once, by a real agent."""
        with self._lock:
            if name not in self._templates:
                self._templates[name] = self._make_template(name)
            return self._templates[name]

    def take_device(self) -> str:
        """A device that nobody has used yet."""
        with self._lock:
            self._taken += 1
            return f"cam-{self._taken}"

    def enrol(self, device: str, template: Path | None) -> Path:
        """The state directory of a device: the template's content under an identity of its own."""
        state_dir = self.folder / "devices" / device
        if template is not None:
            shutil.copytree(template, state_dir, ignore=lambda folder, names: [name for name in names if name in {"identity", "run"}])
        make_identity(state_dir, self.broker, device)
        if template is None:
            self.server.repository.enrol(state_dir)
        return state_dir

    def _make_template(self, name: str) -> Path:
        device = f"template-{name}"
        state_dir = self.enrol(device, None)
        if name == "fresh":
            return state_dir
        with running_agent(state_dir):
            self.server.order(device, 1, self.releases[1], probation_s=0.2)
            wait_for(lambda: has_state(self.server.heard[device], "dep-1", State.COMMITTED), "release 1 to be committed")
            if name == "quarantined":
                self.server.order(device, 2, self.releases[4], probation_s=0.2)
                wait_for(lambda: has_state(self.server.heard[device], "dep-2", State.ROLLED_BACK), "release 4 to be rolled back")
            wait_for(lambda: self.server.heard[device].readings, "readings to arrive")
        return state_dir


@contextlib.contextmanager
def open_bench(folder: Path, *, devices: int) -> Iterator[Bench]:
    """Everything that runs need. Releases: 1 and 2 are sound, 3 crashes on wild input, 4 answers its golden inputs wrongly."""
    names = [f"cam-{number}" for number in range(1, devices + 1)] + [f"template-{name}" for name in ("fresh", "served", "quarantined")]
    with running_broker(folder / "broker", devices=names) as broker, ManyServer(broker) as server:
        bench = Bench(folder, broker, server, build_shim(folder))
        bench.releases = {
            1: server.publish_release(1),
            2: server.publish_release(2, ink=3.0),
            3: server.publish_release(3, Behaviour.CRASH, ink=INK),
            4: server.publish_release(4, Behaviour.WRONG),
        }
        yield bench


@contextlib.contextmanager
def running_agent(state_dir: Path, environment: dict[str, str] | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """`covey-agent run`; killed at the end if it still lives, with all of its children."""
    with log_of(state_dir).open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "covey_agent.cli", "run", "--state-dir", str(state_dir)],
            stderr=log,
            env=os.environ | QUICK | ENVIRONMENT | (environment or {}),
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(20)


def strike(bench: Bench, scenario: Scenario, fault: Fault, at: int) -> Run:
    """One run: start, strike, start again until it rests, check. Raises NotConvergedError."""
    device = bench.take_device()
    run = Run(device, bench.enrol(device, bench.template(scenario.template) if scenario.template != "fresh" else None))
    deployment = scenario.order(bench, device)
    heard = bench.server.heard[device]
    with plan_strike(bench.shim, run.state_dir, bench.folder / "strikes" / device, fault=fault, at=at) as planned:
        try:
            with wild_application(run.state_dir) if scenario.wild else contextlib.nullcontext():
                _first_boot(run, planned, lambda: scenario.ended(heard, deployment))
                run.durable = durable_readings(run.state_dir)
                while not scenario.ended(heard, deployment):
                    _next_boot(run, lambda: scenario.ended(heard, deployment))
            _check(bench, scenario, run, heard, deployment)
        except AssertionError as exc:
            raise NotConvergedError(f"{scenario.name}, {fault.name} at {at} ({_describe(planned, at)}): {exc}\n{log_end(run)}") from exc
        run.boundaries, run.struck = planned.boundaries(), planned.has_struck
    shutil.rmtree(run.state_dir, ignore_errors=True)
    return run


def _first_boot(run: Run, planned: Strike, ended: Callable[[], bool]) -> None:
    run.boots += 1
    with running_agent(run.state_dir, planned.environment) as process:
        children: list[int] = []

        def over() -> bool:
            children[:] = descendants(process.pid)[1:] or children
            return process.poll() is not None or ended()

        wait_for(over, "the strike, or the end")
    wait_for(lambda: not any(is_alive(pid) for pid in children), "the children to die with the agent")


def _next_boot(run: Run, ended: Callable[[], bool]) -> None:
    run.boots += 1
    assert run.boots <= 1 + MAX_BOOTS, f"not at rest after {run.boots} boots"
    with running_agent(run.state_dir) as process:
        wait_for(lambda: process.poll() is not None or ended(), "the device to come to rest")
        assert process.poll() is None, f"the agent ended by itself with {process.poll()}"


def _check(bench: Bench, scenario: Scenario, run: Run, heard: Heard, deployment: str) -> None:
    """Start it once more: nothing begins again, what serves is what is reported, and every durable reading is there, once."""
    before = len(heard.reported)
    with running_agent(run.state_dir):
        wait_for(lambda: len(heard.reported) > before and (heard.reported[-1].serving or not scenario.serves), "a report of the last start")
        report = heard.reported[-1]
        if scenario.serves:
            assert served_version(run.state_dir) == scenario.serves == reported_version(report), f"reported {reported_version(report)}"
        missing = {key: reading for key, reading in run.durable.items() if key not in heard.readings}
        wait_for(lambda: all(key in heard.readings for key in run.durable), f"readings that were on disk: {list(missing)[:5]}")
    assert scenario.ended(heard, deployment), "it did not stay at rest"
    assert not heard.contradictions, heard.contradictions[0]
    results = [state for state in heard.states(deployment) if state == scenario.result]
    assert len(results) <= 1, f"{scenario.result} was reached {len(results)} times"
    assert heard.states(deployment).count("activating") <= run.boots, "more activations than starts"


@contextlib.contextmanager
def wild_application(state_dir: Path) -> Iterator[None]:
    """A program on the device that asks, with input that sets the poison off, whatever becomes of the agent."""
    stop, image = threading.Event(), wild_images(1)[0]

    def ask() -> None:
        while not stop.wait(0.05):
            with contextlib.suppress(ClientError, OSError), Client(str(state_dir / "run" / "infer.sock"), timeout_s=1.0) as client:
                while not stop.wait(0.02):
                    client.infer(image)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(10)


def served_version(state_dir: Path) -> int:
    """The version of the release that answers."""
    with Client(str(state_dir / "run" / "infer.sock"), timeout_s=30) as client:
        return client.infer(wild_images(1)[0] * 0).version


def reported_version(report: Reported) -> int:
    """The version in the slot that the device says is active."""
    return next((slot.version for slot in report.slots if slot.slot == report.active_slot), 0)


def has_state(heard: Heard, deployment: str, state: State) -> bool:
    """Whether the latest report says this of this deployment."""
    report = heard.reported[-1].deployment if heard.reported else None
    return report is not None and (report.deployment, report.state) == (deployment, state)


def durable_readings(state_dir: Path) -> dict[tuple[str, int], Reading]:
    """What is in the buffer on disk, seen through a copy, as after a power cut."""
    with contextlib.ExitStack() as stack:
        copy = state_dir / "look"
        stack.callback(shutil.rmtree, copy, ignore_errors=True)
        copy.mkdir()
        for file in state_dir.glob("state.db*"):
            if file.suffix in {".db", ".db-wal"}:
                shutil.copy2(file, copy / file.name)
        try:
            connection = sqlite3.connect(copy / "state.db")
            stack.callback(connection.close)
            epochs = connection.execute("SELECT data FROM value WHERE key = 'epoch'").fetchall()
            rows = connection.execute("SELECT sequence, data FROM reading").fetchall()
        except sqlite3.Error:  # no database yet
            return {}
        return {(epochs[0][0].decode(), sequence): msgspec.msgpack.decode(data, type=Reading) for sequence, data in rows}


def wait_for(condition: Callable[[], object], what: str, *, timeout_s: float = PATIENCE_S) -> None:
    """Raises NotConvergedError if it never comes."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise NotConvergedError(f"waited {timeout_s:.0f} s in vain for {what}")
        time.sleep(0.01)


def is_alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (OSError, IndexError):
        return False


def log_of(state_dir: Path) -> Path:
    """A device's log: beside its state, because writing a line to it is no step of the agent."""
    return state_dir.with_name(f"{state_dir.name}.log")


def log_end(run: Run) -> str:
    """The last lines of a device's log."""
    path = log_of(run.state_dir)
    return "\n".join(path.read_text("utf-8", "replace").splitlines()[-25:]) if path.exists() else ""


def _describe(planned: Strike, at: int) -> str:
    found = [boundary for boundary in planned.boundaries() if boundary.number == at]
    return f"{found[0].call} {found[0].place}" if found else "never reached"


def _deploy(version: int, generation: int = 2) -> Callable[[Bench, str], str]:
    return lambda bench, device: bench.server.order(device, generation, bench.releases[version])


SCENARIOS = (
    Scenario(
        "first deployment",
        template="fresh",
        order=_deploy(1, 1),
        ended=lambda heard, deployment: has_state(heard, deployment, State.COMMITTED),
        serves=1,
        result="committed",
    ),
    Scenario(
        "deployment",
        template="served",
        order=_deploy(2),
        ended=lambda heard, deployment: has_state(heard, deployment, State.COMMITTED),
        serves=2,
        result="committed",
    ),
    Scenario(
        "roll-back in probation",
        template="served",
        order=lambda bench, device: bench.server.order(device, 2, bench.releases[3], probation_s=3600),
        ended=lambda heard, deployment: has_state(heard, deployment, State.ROLLED_BACK),
        serves=1,
        result="rolled_back",
        wild=True,
    ),
    Scenario(
        "roll-back after the check",
        template="served",
        order=_deploy(4),
        ended=lambda heard, deployment: has_state(heard, deployment, State.ROLLED_BACK),
        serves=1,
        result="rolled_back",
    ),
    Scenario(
        "quarantine lifted",
        template="quarantined",
        order=lambda bench, device: bench.server.order(
            device, 3, None, lift=tuple(entry.digest for entry in bench.server.heard["template-quarantined"].reported[-1].quarantine)
        ),
        ended=lambda heard, _: bool(heard.reported) and heard.reported[-1].quarantine == [] and heard.reported[-1].desired_generation == 3,
        serves=1,
    ),
)
