"""The round loop with real books and a scripted Flower: what is charged when, and what survives a death at any point."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from tests.fakes.server_parts import TestParts, add_device, make_parts

from covey_contract.messages import PrivacyPlan
from covey_server.federation import service
from covey_server.federation.desk import Desk
from covey_server.federation.models import ParticipantState, Run, RunState
from covey_server.federation.rounds import Answer, Pace, conduct
from covey_server.federation.weights import State, Weights
from covey_server.privacy import service as ledger
from covey_server.privacy.models import PrivacyEventKind

PLAN = PrivacyPlan(level="record", noise_multiplier=2.0, clipping_norm=1.0, sample_rate=0.5, steps=1, delta=1e-4)
DEVICES = ("a", "b", "c")


class KilledError(Exception):
    """The ServerApp died here."""


@dataclass
class Script:
    """Flower and its participants: `reply(device, number)` is what comes back, None for silence."""

    parts: TestParts
    reply: Callable[[str, int], Answer | None]
    absent: set[str] = field(default_factory=set)
    sent: list[tuple[int, tuple[str, ...]]] = field(default_factory=list)
    charged_when_sent: list[int] = field(default_factory=list)
    die_in: int = 0  # the round in which the ServerApp dies after sending
    _answers: list[Answer] = field(default_factory=list)

    def online(self) -> set[str]:
        return {f"n-{device}" for device in DEVICES if device not in self.absent}

    def send(self, nodes: Sequence[str], *, run: str, number: int, weights: Weights, timeout_s: float) -> None:
        with self.parts.db.read() as session:
            charges = ledger.list_events(session, run=run, limit=1000)
        self.charged_when_sent.append(sum(1 for e in charges if e.round == number and e.kind is PrivacyEventKind.CHARGE))
        self.sent.append((number, tuple(nodes)))
        assert weights.keys() == {"w"}
        assert timeout_s > 0
        self._answers = [answer for node in nodes if (answer := self.reply(node.removeprefix("n-"), number)) is not None]

    def collect(self) -> list[Answer]:
        if self.sent[-1][0] == self.die_in:
            if len(self._answers) < len(self.sent[-1][1]):
                raise KilledError
            return [self._answers.pop()]  # one answer is in the books already
        answers, self._answers = self._answers, []
        return answers


class Judge:
    """A model of one number that is better the larger it is."""

    def first_state(self) -> State:
        return {"w": np.zeros(1, np.float32), "fixed": np.ones(2, np.float32)}

    def trained_names(self, state: State) -> list[str]:
        return [name for name in state if name == "w"]

    def measure(self, state: State) -> tuple[float, float]:
        return min(1.0, float(state["w"][0]) / 10), 0.5


@dataclass
class Time:
    """A clock that sleeping moves."""

    now: float = 0.0

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def pace(self) -> Pace:
        return Pace(poll_s=1.0, gather_s=5.0, return_s=20.0, clock=lambda: self.now, sleep=self.sleep)


def trained(device: str, value: float = 1.0) -> Answer:
    return Answer(node=f"n-{device}", trained=True, change={"w": np.array([value], np.float32)}, seconds=0.1)


def refusal(device: str) -> Answer:
    return Answer(node=f"n-{device}", trained=False, reason="over budget")


@pytest.fixture
def parts(tmp_path: Path) -> TestParts:
    return make_parts(tmp_path)


@pytest.fixture
def run(parts: TestParts) -> str:
    with parts.db.begin() as session:
        for device in DEVICES:
            add_device(session, device, supernode_public_key="ssh-key", supernode_id=f"n-{device}")
        service.create_task(
            session, "points", b"x = 1\n", purpose="testing", dataset="points", labels=[], blobs=parts.blobs, repository=parts.repository,
            actor="user:test", now=parts.clock(),
        )  # fmt: skip
        spec = service.RunSpec(task="points", model="points", rounds=3, plan=PLAN, hyperparameters={}, max_epsilon=100.0)
        made = service.create_run(session, spec, blobs=parts.blobs, actor="user:test", now=parts.clock())
        made.state = RunState.RUNNING
        for member in service.participants_of(session, made.id):
            member.state = ParticipantState.ACCEPTED
        return made.id


def drive(parts: TestParts, run: str, script: Script, *, flower_run: str = "f1") -> None:
    desk = Desk(db=parts.db, blobs=parts.blobs, clock=parts.clock, round_timeout_s=10.0)
    conduct(run, flower_run=flower_run, desk=desk, link=script, judge=Judge(), pace=Time().pace())


def events(parts: TestParts, run: str) -> list[tuple[str, str, int]]:
    with parts.db.read() as session:
        return [(e.kind.value, e.device_id, e.round) for e in ledger.list_events(session, run=run, limit=1000)]


def states(parts: TestParts, run: str) -> dict[tuple[int, str], str]:
    with parts.db.read() as session:
        return {(c.round, c.device_id): c.state.value for c in service.contributions_of(session, run)}


def found(parts: TestParts, run: str) -> Run:
    with parts.db.read() as session:
        return service.get_run(session, run)


def test_every_round_is_charged_before_it_is_sent_and_kept_after(parts: TestParts, run: str) -> None:
    script = Script(parts, lambda device, _: trained(device))
    drive(parts, run, script)
    assert script.charged_when_sent == [3, 3, 3]
    ended = found(parts, run)
    assert (ended.state, ended.rounds_done) == (RunState.COMPLETED, 3)
    with parts.db.read() as session:
        rounds = service.rounds_of(session, run)
    assert [(r.number, r.sampled, r.contributors, r.accuracy) for r in rounds] == [
        (0, 0, 0, 0),
        (1, 3, 3, 0.1),
        (2, 3, 3, 0.2),
        (3, 3, 3, 0.3),
    ]
    assert all(parts.blobs.exists(r.checkpoint) for r in rounds)
    assert ended.checkpoint == rounds[-1].checkpoint


def test_a_refusal_voids_its_charge_and_the_run_goes_on_without(parts: TestParts, run: str) -> None:
    script = Script(parts, lambda device, number: refusal(device) if (device, number) == ("b", 2) else trained(device))
    drive(parts, run, script)
    assert [nodes for _, nodes in script.sent] == [("n-a", "n-b", "n-c"), ("n-a", "n-b", "n-c"), ("n-a", "n-c")]
    assert [e for e in events(parts, run) if e[1] == "b"] == [("charge", "b", 1), ("charge", "b", 2), ("void", "b", 2)]
    assert found(parts, run).state is RunState.COMPLETED


def test_silence_keeps_its_charge(parts: TestParts, run: str) -> None:
    drive(parts, run, Script(parts, lambda device, number: None if (device, number) == ("c", 1) else trained(device)))
    assert ("void", "c", 1) not in events(parts, run)
    assert states(parts, run)[1, "c"] == "missing"
    assert states(parts, run)[2, "c"] == "received"


def test_an_unusable_contribution_keeps_its_charge_and_does_not_count(parts: TestParts, run: str) -> None:
    drive(parts, run, Script(parts, lambda device, _: trained(device, float("nan") if device == "a" else 1.0)))
    assert states(parts, run)[1, "a"] == "missing"
    assert found(parts, run).state is RunState.COMPLETED
    assert not [e for e in events(parts, run) if e[0] == "void"]


def test_a_withheld_answer_keeps_its_charge_and_tells_why(parts: TestParts, run: str) -> None:
    withheld = Answer(node="n-a", trained=True, reason="withheld: round 1 was already trained here from other weights")
    drive(parts, run, Script(parts, lambda device, number: withheld if (device, number) == ("a", 1) else trained(device)))
    assert ("void", "a", 1) not in events(parts, run)
    assert states(parts, run)[1, "a"] == "missing"
    assert states(parts, run)[2, "a"] == "received"  # and it is asked again
    with parts.db.read() as session:
        row = next(c for c in service.contributions_of(session, run) if (c.round, c.device_id) == (1, "a"))
    assert "other weights" in row.reason


@pytest.mark.parametrize("round_of_death", [1, 2, 3])
def test_a_server_that_dies_in_a_round_continues_after_the_last_finished_one_without_a_second_charge(
    parts: TestParts, run: str, round_of_death: int
) -> None:
    with pytest.raises(KilledError):
        drive(parts, run, Script(parts, lambda device, _: trained(device), die_in=round_of_death))
    assert found(parts, run).rounds_done == round_of_death - 1
    again = Script(parts, lambda device, _: trained(device))
    drive(parts, run, again)
    assert [number for number, _ in again.sent] == list(range(round_of_death, 4))
    assert sorted(events(parts, run)) == sorted(("charge", device, number) for device in DEVICES for number in (1, 2, 3))
    with parts.db.read() as session:
        assert [r.accuracy for r in service.rounds_of(session, run)] == [0, 0.1, 0.2, 0.3]


def test_a_refusal_after_a_contribution_was_received_takes_no_charge_back(parts: TestParts, run: str) -> None:
    with pytest.raises(KilledError):
        drive(parts, run, Script(parts, lambda device, _: trained(device), die_in=1))
    received = [device for (_, device), state in states(parts, run).items() if state == "received"]
    assert received
    drive(parts, run, Script(parts, lambda device, number: refusal(device) if device in received and number == 1 else trained(device)))
    assert ("void", received[0], 1) not in events(parts, run)


def test_too_few_contributions_end_the_run_with_the_model_so_far(parts: TestParts, run: str) -> None:
    drive(parts, run, Script(parts, lambda device, number: trained(device) if number == 1 or device == "a" else refusal(device)))
    ended = found(parts, run)
    assert (ended.state, ended.rounds_done) == (RunState.COMPLETED, 1)
    assert "ended early after round 1" in ended.reason
    assert "2 refused" in ended.reason


def test_a_run_without_any_counting_round_has_failed(parts: TestParts, run: str) -> None:
    drive(parts, run, Script(parts, lambda device, _: refusal(device)))
    assert (found(parts, run).state, found(parts, run).rounds_done) == (RunState.FAILED, 0)


def test_the_first_round_waits_for_all_but_not_for_ever(parts: TestParts, run: str) -> None:
    script = Script(parts, lambda device, _: trained(device), absent={"c"})
    drive(parts, run, script)
    assert script.sent[0] == (1, ("n-a", "n-b"))
    assert found(parts, run).state is RunState.COMPLETED


def test_nobody_there_fails_with_the_reason(parts: TestParts, run: str) -> None:
    drive(parts, run, Script(parts, lambda device, _: trained(device), absent=set(DEVICES)))
    assert found(parts, run).state is RunState.FAILED
    assert "0 participants are online" in found(parts, run).reason
    assert events(parts, run) == []


def test_a_stopped_run_stops_and_stays_stopped(parts: TestParts, run: str) -> None:
    def stop_in_two(device: str, number: int) -> Answer:
        if number == 2 and device == "a":
            with parts.db.begin() as session:
                service.stop_run(session, run, actor="user:alice", now=parts.clock())
        return trained(device)

    script = Script(parts, stop_in_two)
    drive(parts, run, script)
    assert [number for number, _ in script.sent] == [1, 2]
    assert found(parts, run).state is RunState.STOPPED


def test_a_serverapp_that_was_replaced_leaves_the_run_alone(parts: TestParts, run: str) -> None:
    with parts.db.begin() as session:
        service.get_run(session, run).flower_run_id = "f2"
    script = Script(parts, lambda device, _: trained(device))
    drive(parts, run, script, flower_run="f1")
    assert script.sent == []
    assert found(parts, run).state is RunState.RUNNING
