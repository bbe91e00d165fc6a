"""What the planner lets pass and what it refuses, before anybody is asked."""

import math
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from covey_contract.messages import PrivacyPlan
from covey_server.privacy.accounting import Mechanism
from covey_server.privacy.accounting import epsilon_of as pld
from covey_server.privacy.rules import Assessment, assess, mechanism_of

PLAN = PrivacyPlan(level="record", noise_multiplier=2.0, clipping_norm=1.0, sample_rate=0.5, steps=10, delta=1e-4)


def steps_over_ten(mechanisms: Sequence[Mechanism], _delta: float) -> float:
    """An accountant that a reader can follow: every ten steps cost 1."""
    return sum(m.steps for m in mechanisms) / 10


def judge(plan: PrivacyPlan = PLAN, **changes: Any) -> Assessment:
    values: dict[str, Any] = {
        "rounds": 5, "histories": {"a": [], "b": []}, "max_epsilon": 8.0, "min_participants": 2, "allow_unprotected": False,
        "epsilon_of": steps_over_ten,
    }  # fmt: skip
    return assess(plan, **(values | changes))


def test_a_possible_run_is_forecast_round_by_round() -> None:
    found = judge(histories={"a": [], "b": [Mechanism(2.0, 0.5, 20)]})
    assert found.refusals == ()
    assert {f.participant: f.after_round for f in found.forecasts} == {"a": (1, 2, 3, 4, 5), "b": (3, 4, 5, 6, 7)}
    assert (found.epsilon, found.rounds_within_limit) == (5, 5)


def test_what_earlier_runs_spent_counts() -> None:
    found = judge(histories={"a": [], "b": [Mechanism(2.0, 0.5, 60)]})
    assert len(found.refusals) == 1
    assert "b would reach epsilon 11.00" in found.refusals[0]
    assert "2 of 5 rounds fit" in found.refusals[0]
    assert found.rounds_within_limit == 2


def test_a_long_run_is_forecast_at_milestones_and_never_too_low() -> None:
    found = judge(rounds=100, max_epsilon=1000.0)
    curve = found.forecasts[0].after_round
    assert len(curve) == 100
    assert curve[-1] == 100
    assert all(value >= number for number, value in enumerate(curve, start=1))


def test_what_cannot_work_is_refused() -> None:
    # Ten participants, half of the records in each step, z = 1, fifty steps: epsilon above 20.
    plan = PrivacyPlan(level="record", noise_multiplier=1.0, clipping_norm=1.0, sample_rate=0.5, steps=50, delta=1e-5)
    found = judge(plan, rounds=1, histories={f"p{i}": [] for i in range(10)}, epsilon_of=lambda m, delta: pld(m, delta=delta))
    assert found.epsilon > 20
    assert found.refusals


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"noise_multiplier": 0.1}, "noise multiplier"),
        ({"clipping_norm": 0.0}, "clipping norm"),
        ({"sample_rate": 0.0}, "sample rate"),
        ({"delta": 0.0}, "delta"),
        ({"delta": 0.1}, "delta"),
        ({"steps": 0}, "steps"),
        ({"level": "client"}, "level"),
        ({"level": "none"}, "protects nobody"),
    ],
)
def test_a_plan_without_sense_is_refused_with_what_to_change(changes: dict[str, Any], reason: str) -> None:
    found = judge(msgspec.structs.replace(PLAN, **changes))
    assert any(reason in refusal for refusal in found.refusals)


def test_too_few_participants_are_refused() -> None:
    assert "needs 3 participants" in judge(min_participants=3).refusals[0]


def test_no_privacy_needs_an_explicit_word_and_has_no_epsilon() -> None:
    found = judge(msgspec.structs.replace(PLAN, level="none"), allow_unprotected=True)
    assert found.refusals == ()
    assert found.epsilon == math.inf


def test_without_noise_or_clipping_a_mechanism_protects_nobody() -> None:
    assert mechanism_of(msgspec.structs.replace(PLAN, level="none")).noise_multiplier == 0
    assert mechanism_of(msgspec.structs.replace(PLAN, clipping_norm=0.0)).noise_multiplier == 0
