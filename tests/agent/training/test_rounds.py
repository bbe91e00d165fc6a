"""One round: ask, be charged, touch data, keep, send; and every way in which it may be refused."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from covey_agent.core.jobs import AskRound, RoundDecision, RoundTrained
from covey_agent.workers.errors import StorageError, WorkerError
from covey_agent.workers.training.contributions import Contributions
from covey_agent.workers.training.rounds import Refused, RoundTrainer, Trained, Withheld
from covey_agent.workers.training.task_code import Task
from covey_agent.workers.training.weights import Weights
from covey_contract.messages import InviteToRun, PrivacyPlan

PLAN = PrivacyPlan(level="record", noise_multiplier=1.0, clipping_norm=1.0, sample_rate=0.5, steps=3, delta=1e-3)
WEIGHTS: Weights = {"w": np.zeros(3, dtype=np.float32)}


@dataclass
class Witness:
    """The agent, the task's code and the training, writing down the order in which they are used."""

    allow: bool = True
    fail: Exception | None = None
    unreadable: bool = False
    seen: list[str] = field(default_factory=list)

    def ask(self, question: AskRound) -> RoundDecision:
        assert (question.dataset, question.plan) == ("points", PLAN)
        self.seen.append(f"ask {question.round}")
        return RoundDecision(
            run=question.run, round=question.round, allowed=self.allow, reason="" if self.allow else "over budget", epsilon=2.0
        )

    def told(self, event: RoundTrained) -> None:
        self.seen.append(f"told {event.round}")

    def load_data(self, path: str) -> tuple[Any, Any]:
        self.seen.append(f"data {path}")
        if self.unreadable:
            raise ValueError("row 7 is secret")
        return np.ones((4, 2)), np.zeros(4)

    def train(self, _task: Task, weights: Weights, _x: Any, _y: Any) -> Weights:
        self.seen.append("train")
        if self.fail is not None:
            raise self.fail
        return {name: value + np.float32(np.random.default_rng().normal()) for name, value in weights.items()}


@dataclass
class Kept(Contributions):
    """Contributions that note when they are written."""

    def __init__(self, folder: Path, seen: list[str]) -> None:
        super().__init__(folder)
        self._seen = seen

    def keep(self, number: int, *, began_from: str, change: Weights) -> None:
        super().keep(number, began_from=began_from, change=change)
        self._seen.append(f"kept {number}")


Make = Callable[[Witness], RoundTrainer]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    invitation = InviteToRun(
        id="c1", device="pi-1", expires_at=1, run="r1", task="points", task_digest="0" * 64, purpose="testing", dataset="points",
        rounds=5, plan=PLAN, fleet_api="127.0.0.1:1",
    )  # fmt: skip

    def made(witness: Witness) -> RoundTrainer:
        task = Task(digest="0" * 64, build_model=lambda: None, load_data=witness.load_data, compute_loss=lambda *_: None)
        return RoundTrainer(
            invitation=invitation, task=task, train_round=witness.train, data_path="/data.npz", agent=witness,
            contributions=Kept(tmp_path / "kept", witness.seen),
        )  # fmt: skip

    return made


def test_data_is_touched_only_after_a_yes_and_the_result_is_kept_before_it_is_sent(make: Make) -> None:
    witness = Witness()
    answer = make(witness).answer("r1", 1, WEIGHTS)
    assert isinstance(answer, Trained)
    assert answer.steps == PLAN.steps
    assert witness.seen == ["ask 1", "data /data.npz", "train", "kept 1", "told 1"]


def test_a_no_never_touches_data(make: Make) -> None:
    witness = Witness(allow=False)
    assert make(witness).answer("r1", 1, WEIGHTS) == Refused("over budget")
    assert witness.seen == ["ask 1"]


@pytest.mark.parametrize(("run", "number"), [("r2", 1), ("r1", 0), ("r1", 6), ("r1", -1)])
def test_rounds_that_were_not_invited_are_not_even_asked_about(make: Make, run: str, number: int) -> None:
    witness = Witness()
    assert isinstance(make(witness).answer(run, number, WEIGHTS), Refused)
    assert witness.seen == []


def test_the_same_round_again_sends_the_same_bytes_and_asks_nobody(make: Make) -> None:
    witness = Witness()
    first = make(witness).answer("r1", 1, WEIGHTS)
    after_a_crash = Witness()
    again = make(after_a_crash).answer("r1", 1, WEIGHTS)
    assert isinstance(first, Trained)
    assert isinstance(again, Trained)
    assert again.change["w"].tobytes() == first.change["w"].tobytes()
    assert after_a_crash.seen == []


def test_the_same_round_from_other_weights_would_be_a_second_release_and_is_withheld(make: Make) -> None:
    make(Witness()).answer("r1", 1, WEIGHTS)
    witness = Witness()
    answer = make(witness).answer("r1", 1, {"w": np.ones(3, dtype=np.float32)})
    # Not a refusal: the server would take back the charge of what has left.
    assert isinstance(answer, Withheld)
    assert "other weights" in answer.reason
    assert witness.seen == []


@pytest.mark.parametrize("weights", [WEIGHTS, {"w": np.ones(3, dtype=np.float32)}])
def test_a_round_whose_contribution_was_forgotten_is_never_trained_again(make: Make, weights: Weights) -> None:
    for number in (1, 2, 3):  # the contribution of round 1 is gone after round 3
        assert isinstance(make(Witness()).answer("r1", number, WEIGHTS), Trained)
    witness = Witness()
    assert isinstance(make(witness).answer("r1", 1, weights), Withheld)
    assert witness.seen == []


def test_a_contribution_that_cannot_be_read_is_withheld(make: Make, tmp_path: Path) -> None:
    make(Witness()).answer("r1", 1, WEIGHTS)
    file = next((tmp_path / "kept").glob("round-*.npz"))
    file.write_bytes(file.read_bytes()[:-30])
    witness = Witness()
    assert isinstance(make(witness).answer("r1", 1, WEIGHTS), Withheld)
    assert witness.seen == []


def test_a_round_that_was_charged_and_died_before_it_was_kept_may_be_trained_under_that_charge(make: Make) -> None:
    make(Witness(fail=WorkerError("killed"))).answer("r1", 1, WEIGHTS)
    witness = Witness()  # the agent says yes again without a second charge: its own rule
    assert isinstance(make(witness).answer("r1", 1, WEIGHTS), Trained)


def test_what_goes_wrong_in_training_is_a_refusal_with_its_reason(make: Make) -> None:
    answer = make(Witness(fail=WorkerError("the weights are no longer finite"))).answer("r1", 1, WEIGHTS)
    assert answer == Refused("the weights are no longer finite")


def test_a_task_that_crashes_says_no_more_than_how(make: Make) -> None:
    # The text of such an error may hold a record's values.
    answer = make(Witness(fail=RuntimeError("bad value 42 in row 7"))).answer("r1", 1, WEIGHTS)
    assert answer == Refused("the task's code failed: RuntimeError")


def test_an_unreadable_share_is_refused_without_its_contents(make: Make) -> None:
    witness = Witness(unreadable=True)
    answer = make(witness).answer("r1", 1, WEIGHTS)
    assert answer == Refused("dataset points cannot be read: ValueError")


def test_a_truncated_contribution_is_noticed(tmp_path: Path) -> None:
    kept = Contributions(tmp_path)
    kept.keep(1, began_from="x", change=WEIGHTS)
    file = next(tmp_path.glob("round-*.npz"))
    file.write_bytes(file.read_bytes()[:-30])
    with pytest.raises(StorageError):
        kept.find(1)


def test_only_the_newest_contributions_are_kept(tmp_path: Path) -> None:
    kept = Contributions(tmp_path)
    for number in range(1, 6):
        kept.keep(number, began_from="x", change=WEIGHTS)
    assert [number for number in range(1, 6) if kept.find(number) is not None] == [4, 5]
    assert not list(tmp_path.glob("*.partial"))
