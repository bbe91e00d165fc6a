"""Invitations, rounds and commands through the whole daemon."""

from pathlib import Path

import pytest
from tests.fakes.agent.outside import DEVICE, FakeChild, Life, World

from covey_agent.core.jobs import AskRound, Rejected, RoundDecision, RoundTrained, TrainEnded, TrainJob, TrainReady, Verified
from covey_contract.messages import Desired, InviteToRun, Outcome, PrivacyPlan, Profile, ReleaseQuarantine, StopRun

TASK = "c" * 64
PLAN = PrivacyPlan(level="record", noise_multiplier=1.5, clipping_norm=1.0, sample_rate=0.1, steps=10, delta=1e-5)
SETTINGS = f"""
[policy]
tasks = ["{TASK}"]
budgets.digits = {{ epsilon = 3.0, delta = 1e-5 }}
[datasets]
digits = "/data/digits.npz"
faces = "/data/faces"
"""


@pytest.fixture
def world(tmp_path: Path) -> World:
    world = World(tmp_path, profile=Profile.PARTNER)
    (world.state_dir / "agent.toml").write_text(SETTINGS)
    return world


@pytest.fixture
def life(world: World) -> Life:
    life = world.boot()
    life.connect()
    return life


def invite(command: str = "invite-1", run: str = "run-1", *, expires_at: int = 2_000_000_000_000, device: str = DEVICE) -> InviteToRun:
    return InviteToRun(
        id=command,
        device=device,
        expires_at=expires_at,
        run=run,
        task="digits",
        task_digest=TASK,
        purpose="research",
        dataset="digits",
        rounds=9,
        plan=PLAN,
        fleet_api="localhost:9092",
    )


def ask(number: int, run: str = "run-1") -> AskRound:
    return AskRound(run=run, round=number, dataset="digits", plan=PLAN)


def answer(child: FakeChild) -> RoundDecision:
    decision = child.orders[-1]
    assert isinstance(decision, RoundDecision)
    return decision


def train_all(life: Life, *rounds: int) -> list[bool]:
    answers = []
    for number in rounds:
        life.speak("train", ask(number))
        answers.append(answer(life.child("train")).allowed)
    return answers


def test_accepted_invitation_starts_a_trainer_that_gets_only_its_dataset(life: Life) -> None:
    life.order(invite())
    (reply,) = life.replies()
    assert (reply.id, reply.outcome) == ("invite-1", Outcome.ACCEPTED)
    job = life.child("train").job
    assert isinstance(job, TrainJob)
    assert job.data == {"digits": "/data/digits.npz"}
    assert life.reported().training == "run-1"


def test_charge_is_in_the_ledger_before_the_trainer_hears_yes(life: Life, world: World) -> None:
    life.order(invite())
    life.speak("train", TrainReady(node="7"), ask(1))
    decision = answer(life.child("train"))
    assert decision.allowed
    assert 0 < decision.epsilon < 3.0
    assert len((world.state_dir / "ledger.jsonl").read_bytes().splitlines()) == 1


def test_round_over_budget_is_refused_and_the_run_goes_on(life: Life) -> None:
    life.order(invite())
    answers = train_all(life, *range(1, 9))
    granted = answers.count(True)
    assert granted == 5, "1.55, 1.96, 2.30, 2.59, 2.87 fit into 3.0, 3.09 does not"
    assert answers == [True] * granted + [False] * (8 - granted)
    assert "over budget" in answer(life.child("train")).reason
    assert life.database.query("SELECT COUNT(*) FROM ledger") == [(granted,)]


def test_repeated_question_is_charged_once(life: Life) -> None:
    life.order(invite())
    assert train_all(life, 1, 1, 1) == [True, True, True]
    assert life.database.query("SELECT COUNT(*) FROM ledger") == [(1,)]


def test_killed_agent_goes_on_with_the_run_and_charges_no_round_twice(life: Life, world: World) -> None:
    life.order(invite())
    train_all(life, 1, 2)
    life.database.close()
    life = world.boot()
    assert life.reported_training() == "run-1"
    assert train_all(life, 2, 3) == [True, True]
    assert life.database.query("SELECT COUNT(*) FROM ledger") == [(3,)]


def test_repeated_invitation_gets_the_same_answer_and_starts_nothing(life: Life, world: World) -> None:
    life.order(invite())
    first = life.replies()
    life.order(invite())
    assert life.replies() == first
    life.database.close()
    life = world.boot()
    life.connect()
    assert life.replies() == first, "repeated with the new connection too"
    life.order(invite())
    assert life.replies() == first
    assert len(life.running("train")) == 1


def test_refusal_names_its_reason_and_starts_nothing(life: Life, world: World) -> None:
    (world.state_dir / "agent.toml").write_text("[policy]\nconsent = false\n")
    life.order(invite())
    (reply,) = life.replies()
    assert reply.outcome is Outcome.REFUSED
    assert "consents to no training" in reply.reason
    assert not life.running("train")


def test_consent_withdrawn_during_a_run_stops_the_next_round(life: Life, world: World) -> None:
    life.order(invite())
    assert train_all(life, 1) == [True]
    (world.state_dir / "agent.toml").write_text(SETTINGS.replace("[policy]", "[policy]\nconsent = false"))
    assert train_all(life, 2) == [False]


def test_broken_settings_refuse_instead_of_training_by_old_rules(life: Life, world: World) -> None:
    (world.state_dir / "agent.toml").write_text("[policy\n")
    life.order(invite())
    assert life.replies()[0].outcome is Outcome.REFUSED


def test_second_run_is_refused_while_one_is_active(life: Life) -> None:
    life.order(invite())
    life.order(invite("invite-2", "run-2"))
    assert [reply.outcome for reply in life.replies()] == [Outcome.ACCEPTED, Outcome.REFUSED]


def test_expired_foreign_and_malformed_commands_are_dropped(life: Life) -> None:
    life.order(invite(expires_at=1))
    life.order(invite(device="cam-2"))
    life.receive("down/command", b"{}")
    life.receive("down/command", b"\x00\xff")
    life.order(Desired(device=DEVICE, generation=1, issued_at=1))
    assert life.replies() == []
    assert not life.running("train")


def test_run_ends_with_the_trainers_word(life: Life) -> None:
    life.order(invite())
    life.speak("train", RoundTrained(run="run-1", round=1, values={"seconds": 0.5, "steps": 9}))
    life.speak("train", TrainEnded(run="run-1", reason="all rounds done", ok=True))
    assert life.reported().training == ""
    life.advance(5)
    readings = [reading for batch in life.batches() for reading in batch.readings if reading.kind == "training"]
    assert readings[0].values == {"run": "run-1", "round": 1, "seconds": 0.5, "steps": 9, "budget": 3.0}


def test_trainer_that_cannot_join_makes_the_answer_failed(life: Life) -> None:
    life.order(invite())
    life.speak("train", TrainEnded(run="run-1", reason="the invitation is not signed by the director", ok=False))
    assert [reply.outcome for reply in life.replies()] == [Outcome.ACCEPTED, Outcome.FAILED]
    assert life.reported().training == ""


def test_trainer_that_dies_is_started_again_after_flowers_minute(life: Life) -> None:
    life.order(invite())
    life.child("train").ends("killed by SIGKILL")
    life.settle()
    life.advance(60, step_s=10)
    assert not life.running("train")
    life.advance(10, step_s=5)
    assert life.child("train")


def test_trainer_that_keeps_dying_is_given_up(life: Life) -> None:
    life.order(invite())
    for _ in range(6):
        life.child("train").ends("killed by SIGKILL")
        life.advance(700, step_s=100)
    assert life.replies()[-1].outcome is Outcome.FAILED
    assert not life.running("train")


def test_stop_is_obeyed_only_when_verified(life: Life) -> None:
    life.order(invite())
    stop = StopRun(id="stop-1", device=DEVICE, expires_at=2_000_000_000_000, run="run-1")
    life.order(stop)
    life.speak("verify", Rejected(reason="forged"))
    assert not life.child("train").input_closed
    life.order(StopRun(id="stop-2", device=DEVICE, expires_at=2_000_000_000_000, run="run-1"))
    trainer = life.child("train")
    life.speak("verify", Verified())
    assert trainer.input_closed
    assert [reply.outcome for reply in life.replies()] == [Outcome.ACCEPTED, Outcome.REFUSED, Outcome.DONE]
    life.advance(31, step_s=5)
    assert trainer.gone, "past its grace it is killed"
    assert not life.running("train")


def test_release_of_an_unknown_digest_is_answered(life: Life) -> None:
    life.order(ReleaseQuarantine(id="q-1", device=DEVICE, expires_at=2_000_000_000_000, digest="d" * 64))
    life.speak("verify", Verified())
    (reply,) = life.replies()
    assert (reply.outcome, reply.reason) == (Outcome.DONE, "this digest was not in quarantine here")


def test_presence_is_told_at_every_connection(life: Life) -> None:
    life.disconnect()
    life.connect()
    assert [status.presence.value for status in life.statuses()] == ["online", "online"]


def test_reports_are_numbered_upwards_across_restarts(life: Life, world: World) -> None:
    first = life.reported().generation
    life.advance(301, step_s=50)
    second = life.reported().generation
    life.database.close()
    life = world.boot()
    life.connect()
    assert first < second < life.reported().generation
