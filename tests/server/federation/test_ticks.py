"""What the worker does about runs, with Flower played by a fake that can be away, and can lose runs."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import pytest
from tests.fakes.server_parts import TestParts, add_device, make_parts, sent_messages

from covey_contract.messages import PrivacyPlan
from covey_server.devices.models import Device, DeviceState
from covey_server.errors import InvalidInputError, UnavailableError
from covey_server.federation import service
from covey_server.federation.control import FlowerStatus
from covey_server.federation.models import ParticipantState, Run, RunState
from covey_server.federation.ticks import MAX_RESTARTS, RunKeeper

PLAN = PrivacyPlan(level="record", noise_multiplier=2.0, clipping_norm=1.0, sample_rate=0.5, steps=1, delta=1e-4)
RUNNING = FlowerStatus("running", "", "")


@dataclass
class FakeFlower:
    """FlowerControl in memory."""

    away: bool = False
    nodes: dict[str, str] = field(default_factory=dict)  # key -> node id
    runs: dict[str, FlowerStatus] = field(default_factory=dict)
    started: list[dict[str, object]] = field(default_factory=list)
    stopped: list[str] = field(default_factory=list)

    def admit(self, public_key: str, *, name: str) -> str:
        self._check()
        if public_key == "bad":
            raise InvalidInputError(f"the key of {name} is not one")
        return self.nodes.setdefault(public_key, str(100 + len(self.nodes)))

    def expel(self, node_id: str) -> None:
        self._check()
        self.nodes = {key: node for key, node in self.nodes.items() if node != node_id}

    def start(self, config: Mapping[str, str | int | float | bool]) -> str:
        self._check()
        self.started.append(dict(config))
        ident = f"f{len(self.started)}"
        self.runs[ident] = RUNNING
        return ident

    def status(self, flower_run: str) -> FlowerStatus | None:
        self._check()
        return self.runs.get(flower_run)

    def stop(self, flower_run: str) -> None:
        self._check()
        self.stopped.append(flower_run)

    def _check(self) -> None:
        if self.away:
            raise UnavailableError("the SuperLink does not answer")


@pytest.fixture
def parts(tmp_path: Path) -> TestParts:
    made = make_parts(tmp_path)
    with made.db.begin() as session:
        for device in ("a", "b", "c"):
            add_device(session, device, supernode_public_key=f"key-{device}")
    return made


@pytest.fixture
def flower() -> FakeFlower:
    return FakeFlower()


@pytest.fixture
def keeper(parts: TestParts, flower: FakeFlower) -> RunKeeper:
    return RunKeeper(parts, flower)


@pytest.fixture
def run(parts: TestParts) -> str:
    with parts.db.begin() as session:
        service.create_task(
            session, "points", b"x = 1\n", purpose="testing", dataset="points", labels=[], blobs=parts.blobs, repository=parts.repository,
            actor="user:test", now=parts.clock(),
        )  # fmt: skip
        spec = service.RunSpec(task="points", model="points", rounds=3, plan=PLAN, hyperparameters={}, max_epsilon=100.0)
        made = service.create_run(session, spec, blobs=parts.blobs, actor="user:test", now=parts.clock())
        service.start_run(
            session, made.id, director=parts.director, fleet_api="edge:1", invite_timeout=timedelta(seconds=60),
            round_timeout=timedelta(seconds=60), actor="user:test", now=parts.clock(),
        )  # fmt: skip
        return made.id


def answer(parts: TestParts, run: str, **states: ParticipantState) -> None:
    with parts.db.begin() as session:
        for member in service.participants_of(session, run):
            member.state = states.get(member.device_id, member.state)


def accept_all(parts: TestParts, run: str) -> None:
    answer(parts, run, a=ParticipantState.ACCEPTED, b=ParticipantState.ACCEPTED, c=ParticipantState.ACCEPTED)


def found(parts: TestParts, run: str) -> Run:
    with parts.db.read() as session:
        return service.get_run(session, run)


def test_devices_are_admitted_and_revoked_ones_expelled(parts: TestParts, keeper: RunKeeper, flower: FakeFlower) -> None:
    keeper.tick()
    assert set(flower.nodes) == {"key-a", "key-b", "key-c"}
    with parts.db.begin() as session:
        device = session.get(Device, "a")
        assert device is not None
        assert device.supernode_id == flower.nodes["key-a"]
        device.state = DeviceState.REVOKED
    keeper.tick()
    keeper.tick()
    assert set(flower.nodes) == {"key-b", "key-c"}


def test_a_key_that_is_none_keeps_nobody_else_out(parts: TestParts, keeper: RunKeeper, flower: FakeFlower) -> None:
    with parts.db.begin() as session:
        add_device(session, "0-first", supernode_public_key="bad")
    keeper.tick()
    keeper.tick()
    assert set(flower.nodes) == {"key-a", "key-b", "key-c"}


def test_a_run_starts_when_all_have_answered(parts: TestParts, keeper: RunKeeper, flower: FakeFlower, run: str) -> None:
    answer(parts, run, a=ParticipantState.ACCEPTED, b=ParticipantState.ACCEPTED)
    keeper.tick()
    assert (found(parts, run).state, flower.started) == (RunState.INVITING, [])
    answer(parts, run, c=ParticipantState.REFUSED)
    keeper.tick()
    assert (found(parts, run).state, found(parts, run).flower_run_id) == (RunState.RUNNING, "f1")
    assert flower.started == [{"run": run, "work-dir": str(parts.settings.path())}]
    keeper.tick()
    assert len(flower.started) == 1


def test_after_the_deadline_it_starts_with_those_who_accepted(parts: TestParts, keeper: RunKeeper, flower: FakeFlower, run: str) -> None:
    answer(parts, run, a=ParticipantState.ACCEPTED, b=ParticipantState.ACCEPTED)
    parts.clock.advance(seconds=61)
    keeper.tick()
    assert found(parts, run).state is RunState.RUNNING


def test_too_few_acceptances_fail_it_with_the_reason(parts: TestParts, keeper: RunKeeper, flower: FakeFlower, run: str) -> None:
    answer(parts, run, a=ParticipantState.ACCEPTED, b=ParticipantState.REFUSED, c=ParticipantState.REFUSED)
    keeper.tick()
    assert found(parts, run).state is RunState.FAILED
    assert found(parts, run).reason == "1 participants accepted, 2 are needed"
    assert flower.started == []


def test_a_serverapp_that_died_is_replaced(parts: TestParts, keeper: RunKeeper, flower: FakeFlower, run: str) -> None:
    accept_all(parts, run)
    keeper.tick()
    flower.runs["f1"] = FlowerStatus("finished", "failed", "No heartbeat received from the task")
    keeper.tick()
    assert found(parts, run).flower_run_id == "f2"
    del flower.runs["f2"]  # a SuperLink that lost its database
    keeper.tick()
    assert found(parts, run).flower_run_id == "f3"


def test_one_that_dies_again_and_again_without_progress_fails(parts: TestParts, keeper: RunKeeper, flower: FakeFlower, run: str) -> None:
    accept_all(parts, run)
    for _ in range(MAX_RESTARTS + 2):
        keeper.tick()
        for ident in flower.runs:
            flower.runs[ident] = FlowerStatus("finished", "failed", "out of memory")
    assert found(parts, run).state is RunState.FAILED
    assert "out of memory" in found(parts, run).reason
    assert len(flower.started) == MAX_RESTARTS + 1


def test_one_that_dies_after_progress_is_replaced_as_often_as_it_takes(
    parts: TestParts, keeper: RunKeeper, flower: FakeFlower, run: str
) -> None:
    accept_all(parts, run)
    for number in range(MAX_RESTARTS * 2):
        keeper.tick()
        flower.runs = dict.fromkeys(flower.runs, FlowerStatus("finished", "failed", "killed"))
        with parts.db.begin() as session:
            service.get_run(session, run).rounds_done = number
    assert found(parts, run).state is RunState.RUNNING


def test_a_superlink_that_is_away_is_waited_for(parts: TestParts, keeper: RunKeeper, flower: FakeFlower, run: str) -> None:
    accept_all(parts, run)
    flower.away = True
    for _ in range(3):
        keeper.tick()
    assert found(parts, run).state is not RunState.FAILED
    flower.away = False
    keeper.tick()
    assert found(parts, run).flower_run_id == "f1"


def test_participants_of_an_ended_run_are_sent_home_once(parts: TestParts, keeper: RunKeeper, flower: FakeFlower, run: str) -> None:
    accept_all(parts, run)
    keeper.tick()
    with parts.db.begin() as session:
        service.stop_run(session, run, actor="user:alice", now=parts.clock())
    before = len(sent_messages(parts, "covey/v1/d/a/down/command"))
    keeper.tick()
    keeper.tick()
    assert flower.stopped == ["f1"]
    assert len(sent_messages(parts, "covey/v1/d/a/down/command")) == before + 1
