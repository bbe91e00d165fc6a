"""An outside for the agent that behaves: a broker in memory, children that a test speaks for, a clock that stands still.

world = World(tmp_path)              # the device: its disk survives
agent = world.start()                # one life of the agent process
agent.child("infer").says(InferReady(load_ms=1))
agent.settle()
"""

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec

from covey_agent.adapters.store_sqlite import Database, open_database
from covey_agent.app import Agent, Outside, build_agent
from covey_agent.core.jobs import (
    CheckFailed,
    CheckPassed,
    ChildEvent,
    DeployFailed,
    DeployRefused,
    Drain,
    InferJob,
    Order,
    Pause,
    Probed,
    Rejected,
    RenewalFailed,
    RenewalInstalled,
    RenewalRefused,
    RenewalRequested,
    Resume,
    Staged,
    TrainEnded,
    Verified,
    VerifyFailed,
)
from covey_agent.core.walltime import ClockState, WallTime
from covey_agent.daemon.heartbeat import Notifier
from covey_agent.errors import StoreError
from covey_agent.identity import Identity, IdentityFile
from covey_agent.inbox import BrokerConnected, BrokerLost, ChildEnded, ChildSpoke, MessageArrived, Post
from covey_agent.settings import InferenceSettings, Settings
from covey_contract.codec import decode, encode
from covey_contract.messages import Command, Desired, Profile, ReadingBatch, ReleaseRef, Reply, Reported, Signed, Status
from covey_contract.release import Bounds

FINAL = (
    Staged,
    DeployRefused,
    DeployFailed,
    CheckPassed,
    CheckFailed,
    Probed,
    Verified,
    Rejected,
    VerifyFailed,
    TrainEnded,
    RenewalRequested,
    RenewalInstalled,
    RenewalRefused,
    RenewalFailed,
)
DEVICE = "cam-1"
START = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)


class FakeClock:
    """Stands still until `advance`."""

    def __init__(self, now: datetime = START) -> None:
        self.time = now
        self.ticks = 1000.0
        self.wall = WallTime(0)

    def now(self) -> datetime:
        return self.time

    def now_ms(self) -> int:
        return int(self.time.timestamp() * 1000)

    def monotonic(self) -> float:
        return self.ticks

    @property
    def state(self) -> ClockState:
        return self.wall.look(self.now_ms(), self.ticks)

    def confirm(self) -> None:
        self.wall.confirm(self.now_ms(), self.ticks)

    def advance(self, seconds: float) -> None:
        self.time += timedelta(seconds=seconds)
        self.ticks += seconds


class FakeBroker:
    """Takes messages while it is connected."""

    def __init__(self) -> None:
        self.is_connected = False
        self.sent: list[tuple[str, bytes, bool]] = []

        self.renewals = 0

    def start(self) -> None:
        """Nothing: a test connects."""

    def renew(self) -> None:
        """Remember that a new certificate is to be tried."""
        self.renewals += 1

    def stop(self) -> None:
        self.is_connected = False

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> bool:
        if self.is_connected:
            self.sent.append((topic, payload, retain))
        return self.is_connected

    def take(self, tail: str) -> list[bytes]:
        """Payloads sent on topics that end like this, which are then forgotten."""
        taken = [payload for topic, payload, _ in self.sent if topic.endswith(tail)]
        self.sent = [message for message in self.sent if not message[0].endswith(tail)]
        return taken


@dataclass
class FakeChild:
    """A child whose words and end a test decides."""

    id: int
    program: str
    job: msgspec.Struct
    post: Post
    orders: list[Order] = field(default_factory=list)
    input_closed: bool = False
    gone: str = ""

    def send(self, order: Order) -> None:
        self.orders.append(order)

    def close_input(self) -> None:
        self.input_closed = True

    def kill(self, reason: str) -> None:
        self.ends(reason)

    def says(self, *events: ChildEvent) -> None:
        for event in events:
            self.post(ChildSpoke(self.id, event))
            if isinstance(event, FINAL):
                self.ends(clean=True)

    def ends(self, reason: str = "ended", *, clean: bool = False) -> None:
        if not self.gone:
            self.gone = reason
            self.post(ChildEnded(self.id, reason, clean=clean))


class FakeChildren:
    """Remembers what was started."""

    def __init__(self, post: Post) -> None:
        self._post = post
        self.started: list[FakeChild] = []

    def start(self, program: str, job: msgspec.Struct, *, pass_fds: Sequence[int] = (), memory_limit: int = 0) -> FakeChild:
        child = FakeChild(len(self.started) + 1, program, job, self._post)
        self.started.append(child)
        return child

    def stop_all(self, *, grace_s: float) -> None:
        for child in self.started:
            child.kill("the agent stopped")


class FakeSockets:
    """Descriptors that nobody uses."""

    unix_fd, tcp_fd, token, handover_fds = 100, -1, "", (101, 102)

    def close(self) -> None:
        """Nothing to close."""


class PowerCutError(BaseException):
    """The end of everything, at a chosen write. Not an Exception: nothing in the agent may survive it."""


class FragileDatabase(Database):
    """A real database that loses power just before or just after its n-th transaction is committed."""

    def __init__(self, inner: Database, *, cut_at: int, after: bool) -> None:
        super().__init__(inner._connection)
        self._cut_at, self._after = cut_at, after
        self.writes = 0

    @contextmanager
    def transaction(self, *, durable: bool) -> Iterator[sqlite3.Connection]:
        self.writes += 1
        cut = self.writes == self._cut_at
        if cut and not self._after:
            raise PowerCutError
        with super().transaction(durable=durable) as connection:
            yield connection
        if cut:
            raise PowerCutError


class FullDatabase(Database):
    """A real database on a disk that is full whenever a test says so."""

    def __init__(self, inner: Database) -> None:
        super().__init__(inner._connection)
        self.is_full = False

    @contextmanager
    def transaction(self, *, durable: bool) -> Iterator[sqlite3.Connection]:
        if self.is_full:
            raise StoreError("database or disk is full")
        with super().transaction(durable=durable) as connection:
            yield connection


@dataclass
class Life:
    """One run of the agent process on a device."""

    agent: Agent
    broker: FakeBroker
    children: FakeChildren
    clock: FakeClock
    database: Database
    post: Post
    last_report: bytes = b""

    def settle(self) -> None:
        """Handle everything that waits, without letting time pass."""
        while self.agent.turn(wait_s=0):
            pass

    def advance(self, seconds: float, *, step_s: float = 1.0) -> None:
        """Let time pass, and handle what it brings."""
        while seconds > 0:
            self.clock.advance(min(step_s, seconds))
            seconds -= step_s
            self.settle()

    def connect(self) -> None:
        """The broker is there."""
        self.broker.is_connected = True
        self.post(BrokerConnected())
        self.settle()

    def disconnect(self) -> None:
        """The broker is away."""
        self.broker.is_connected = False
        self.post(BrokerLost("a test pulled the plug"))
        self.settle()

    def receive(self, tail: str, payload: bytes) -> None:
        """A message on one of the device's topics."""
        self.post(MessageArrived(f"covey/v1/d/{DEVICE}/{tail}", payload))
        self.settle()

    def order(self, order: Desired | Command) -> None:
        """A signed order arrives."""
        self.receive("down/desired" if isinstance(order, Desired) else "down/command", sign(order))

    def running(self, program: str) -> list[FakeChild]:
        """The living children of one program."""
        return [child for child in self.children.started if child.program == program and not child.gone]

    def child(self, program: str) -> FakeChild:
        """The one living child of a program."""
        found = self.running(program)
        assert len(found) == 1, f"expected one living {program} child, found {len(found)}"
        return found[0]

    def worker(self, slot: str) -> FakeChild | None:
        """The living infer worker of a slot."""
        found = [child for child in self.running("infer") if isinstance(child.job, InferJob) and child.job.slot == slot]
        assert len(found) <= 1, f"two workers on slot {slot}"
        return found[0] if found else None

    def accepting(self) -> list[str]:
        """The slots whose workers are meant to accept: what an application could get an answer from."""
        slots = []
        for child in self.running("infer"):
            assert isinstance(child.job, InferJob)
            accepts = not child.job.paused
            for order in child.orders:
                accepts = True if isinstance(order, Resume) else False if isinstance(order, Pause | Drain) else accepts
            if accepts:
                slots.append(child.job.slot)
        return slots

    def speak(self, program: str, *events: ChildEvent) -> None:
        """The child of a program says something."""
        self.child(program).says(*events)
        self.settle()

    def reported(self) -> Reported:
        """The latest reported state."""
        self.settle()
        self.advance(0.1, step_s=0.1)
        self.last_report = [self.last_report, *self.broker.take("up/reported")][-1]
        return decode(self.last_report, Reported)

    def reported_training(self) -> str:
        """The run that the agent would report."""
        return self.agent._hub.runs.training

    def replies(self) -> list[Reply]:
        """Answers sent since the last look."""
        return [decode(payload, Reply) for payload in self.broker.take("up/reply")]

    def batches(self) -> list[ReadingBatch]:
        """Readings sent since the last look."""
        return [decode(payload, ReadingBatch) for payload in self.broker.take("up/readings")]

    def statuses(self) -> list[Status]:
        """Presence sent since the last look."""
        return [decode(payload, Status) for payload in self.broker.take("/status")]


class World:
    """A device whose disk outlives its processes."""

    def __init__(self, folder: Path, *, profile: Profile = Profile.DEVICE, settings: Settings | None = None) -> None:
        self.state_dir = folder / "state"
        self.state_dir.mkdir(parents=True, exist_ok=True)
        self.settings = settings or Settings()
        self.clock = FakeClock()
        self.identity = Identity(
            file=IdentityFile(
                device=DEVICE,
                profile=profile,
                url="https://localhost:1",
                mqtt_host="localhost",
                mqtt_port=1,
                fleet_api="localhost:2",
                ca_fingerprint="0" * 64,
                enrolled_at=1,
            ),
            folder=self.state_dir / "identity",
        )

    def start(self, *, cut_at: int | None = None, after: bool = False, full: bool = False, notifier: Notifier | None = None) -> Life:
        """A new process; with `cut_at`, one that loses power at that write; with `full`, one whose disk can be full."""
        (self.state_dir / "run").mkdir(exist_ok=True)
        database = open_database(self.state_dir / "state.db")
        if full:
            database = FullDatabase(database)
        if cut_at is not None:
            database = FragileDatabase(database, cut_at=cut_at, after=after)
        broker = FakeBroker()
        posts: list[tuple[FakeChildren, Post]] = []

        def make_children(post: Post) -> FakeChildren:
            posts.append((FakeChildren(post), post))
            return posts[0][0]

        outside = Outside(broker=broker, children=make_children, clock=self.clock)
        agent = build_agent(
            self.state_dir, self.settings, self.identity, database=database, sockets=FakeSockets(), notifier=notifier, outside=outside
        )
        children, post = posts[0]
        return Life(agent=agent, broker=broker, children=children, clock=self.clock, database=database, post=post)

    def boot(self, notifier: Notifier | None = None) -> Life:
        """A new process that has booted."""
        life = self.start(notifier=notifier)
        life.agent.boot()
        life.settle()
        return life

    def fill_slot(self, slot: str, version: int, *, bounds: Bounds | None = None) -> None:
        """What the deploy child leaves in a slot."""
        folder = self.state_dir / "slots" / slot
        folder.mkdir(parents=True, exist_ok=True)
        note = {"model": "digits", "version": version, "manifest": manifest(version), "variant": "onnx-int8", "artifact": artifact(version)}
        (folder / "slot.json").write_bytes(msgspec.json.encode({**note, "reason": "the best that fits"}))
        (folder / "manifest.json").write_bytes(msgspec.json.encode({"bounds": bounds or Bounds()}))
        (folder / "model.onnx").write_bytes(b"model")


def manifest(version: int) -> str:
    """The digest of a release's manifest."""
    return f"{version:02d}" * 32


def artifact(version: int) -> str:
    """The digest of a release's artifact."""
    return f"a{version}" * 32


def desired(
    generation: int, version: int | None, *, released: Sequence[str] = (), probation_s: float = 10.0, deployment: str = ""
) -> Desired:
    """An order for this device."""
    return Desired(
        device=DEVICE,
        generation=generation,
        issued_at=1,
        release=None if version is None else ReleaseRef(model="digits", version=version, manifest=manifest(version)),
        deployment=deployment or f"dep-{generation}",
        probation_s=probation_s,
        released_from_quarantine=list(released),
    )


def sign(order: Desired | Command) -> bytes:
    """The envelope; fake children do not look at the signature."""
    return encode(Signed(payload=encode(order), keyid="0" * 64, signature=b"signature"))


def inference(**changes: Any) -> Settings:
    """Settings with some of [inference] changed."""
    return Settings(inference=InferenceSettings(**changes))
