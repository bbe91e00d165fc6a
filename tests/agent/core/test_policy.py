"""A participant's policy and the ledger's rule."""

from collections.abc import Sequence
from datetime import UTC, datetime, time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from covey_agent.core.jobs import AskRound
from covey_agent.core.policy import (
    NO_GUARANTEE,
    Budget,
    LedgerEntry,
    Policy,
    decide_invitation,
    decide_round,
    parse_hours,
    policy_hash,
    spent,
)
from covey_agent.core.privacy import Charge, epsilon_of
from covey_contract.messages import InviteToRun, PrivacyPlan

NOON = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
TASK = "c" * 64
PLAN = PrivacyPlan(level="record", noise_multiplier=1.0, clipping_norm=1.0, sample_rate=0.1, steps=10, delta=1e-5)
OPEN = PrivacyPlan(level="none", noise_multiplier=0.0, clipping_norm=0.0, sample_rate=1.0, steps=10, delta=0.0)
POLICY = Policy(tasks=(TASK,), budgets={"digits": Budget(epsilon=3.0, delta=1e-5)})


def one_per_charge(charges: Sequence[Charge], delta: float) -> float:
    """Epsilon 1 a round: easy to count."""
    assert delta == 1e-5
    return float(len(charges))


def invite(**changes: object) -> InviteToRun:
    values: dict[str, object] = {
        "id": "i1",
        "device": "p-1",
        "expires_at": 1,
        "run": "run-1",
        "task": "digits",
        "task_digest": TASK,
        "purpose": "research",
        "dataset": "digits",
        "rounds": 9,
        "plan": PLAN,
        "fleet_api": "localhost:1",
    }
    return InviteToRun(**{**values, **changes})  # type: ignore[arg-type]  # each test names real fields


def entry(number: int, plan: PrivacyPlan = PLAN, dataset: str = "digits", run: str = "run-1") -> LedgerEntry:
    return LedgerEntry(run=run, round=number, dataset=dataset, plan=plan, at=1)


def ask(number: int, **changes: object) -> AskRound:
    return AskRound(**{"run": "run-1", "round": number, "dataset": "digits", "plan": PLAN, **changes})  # type: ignore[arg-type]  # as above


def decide(order: InviteToRun, policy: Policy = POLICY, ledger: Sequence[LedgerEntry] = (), now: datetime = NOON) -> tuple[bool, str]:
    decision = decide_invitation(order, policy, ledger=ledger, datasets={"digits": "/data"}, now=now, epsilon_of=one_per_charge)
    return decision.allowed, decision.reason


def test_allowed_task_within_budget_is_accepted() -> None:
    assert decide(invite())[0]


@pytest.mark.parametrize(
    ("order", "policy", "reason"),
    [
        (invite(), Policy(consent=False, tasks=(TASK,), budgets=POLICY.budgets), "consents to no training"),
        (invite(task_digest="d" * 64), POLICY, "not allowed by the policy"),
        (invite(purpose="ads"), Policy(tasks=(TASK,), purposes=("research",), budgets=POLICY.budgets), "purpose 'ads'"),
        (invite(dataset="faces"), POLICY, "no dataset 'faces'"),
        (invite(), Policy(tasks=(TASK,)), "no budget for dataset 'digits'"),
        (invite(plan=OPEN), POLICY, "no training without privacy"),
        (invite(plan=PrivacyPlan("record", 0.0, 1.0, 0.1, 10, 1e-5)), POLICY, "needs noise"),
        (invite(plan=PrivacyPlan("magic", 1.0, 1.0, 0.1, 10, 1e-5)), POLICY, "expected a privacy level"),
        (invite(), Policy(tasks=(TASK,), hours=((time(22), time(6)),), budgets=POLICY.budgets), "no training at this hour"),
    ],
)
def test_what_is_not_allowed_is_refused_with_the_reason(order: InviteToRun, policy: Policy, reason: str) -> None:
    allowed, why = decide(order, policy)
    assert not allowed
    assert reason in why


@pytest.mark.parametrize(("hour", "allowed"), [(21, False), (22, True), (2, True), (6, False), (12, False)])
def test_hours_may_pass_midnight(hour: int, allowed: bool) -> None:
    policy = Policy(tasks=(TASK,), hours=(parse_hours("22:00-06:00"),), budgets=POLICY.budgets)
    assert decide(invite(), policy, now=NOON.replace(hour=hour))[0] is allowed


def test_hours_that_are_none_are_refused() -> None:
    with pytest.raises(ValueError, match="HH:MM-HH:MM"):
        parse_hours("whenever")


def test_invitation_is_refused_when_not_even_one_round_fits() -> None:
    assert decide(invite(), ledger=[entry(1), entry(2)])[0]
    allowed, why = decide(invite(), ledger=[entry(1), entry(2), entry(3)])
    assert not allowed
    assert "over budget: epsilon 3.000 spent, 4.000 with this round, 3.000 allowed" in why


def test_budget_is_per_dataset() -> None:
    assert decide(invite(), ledger=[entry(i, dataset="faces") for i in range(9)])[0]


def round_decision(question: AskRound, ledger: Sequence[LedgerEntry], policy: Policy = POLICY) -> tuple[bool, str, bool]:
    decision = decide_round(question, invite(), policy, ledger=ledger, now=NOON, epsilon_of=one_per_charge)
    return decision.allowed, decision.reason, decision.charge is not None


def test_each_round_is_charged_and_the_one_over_budget_refused() -> None:
    ledger: list[LedgerEntry] = []
    answers = []
    for number in range(1, 6):
        decision = decide_round(ask(number), invite(), POLICY, ledger=ledger, now=NOON, epsilon_of=one_per_charge)
        if decision.charge:
            ledger.append(decision.charge)
        answers.append(decision.allowed)
    assert answers == [True, True, True, False, False]
    assert [charge.round for charge in ledger] == [1, 2, 3]


def test_asking_again_for_a_charged_round_costs_nothing_even_at_the_limit() -> None:
    ledger = [entry(1), entry(2), entry(3)]
    assert round_decision(ask(3), ledger) == (True, "already charged", False)


def test_an_older_charged_round_is_never_trained_again() -> None:
    # Its contribution may have left and been forgotten: a yes would be a second release that no charge pays for.
    for number in (1, 2):
        allowed, why, charged = round_decision(ask(number), [entry(1), entry(2), entry(3)])
        assert (allowed, charged) == (False, False)
        assert "later ones since" in why
    assert round_decision(ask(3), [entry(3), entry(9, run="run-2")])[0]


def test_another_plan_for_a_charged_round_is_refused() -> None:
    other = PrivacyPlan("record", 0.5, 1.0, 0.1, 10, 1e-5)
    allowed, why, charged = round_decision(ask(1), [entry(1, plan=other)])
    assert not allowed
    assert not charged
    assert "another plan" in why


@pytest.mark.parametrize(
    "question",
    [
        ask(1, run="run-2"),
        ask(1, dataset="faces"),
        ask(1, plan=PrivacyPlan("record", 0.1, 1.0, 0.1, 10, 1e-5)),
        ask(10),
    ],
    ids=["run", "dataset", "less noise", "too many rounds"],
)
def test_round_that_the_invitation_does_not_cover_is_refused(question: AskRound) -> None:
    assert not round_decision(question, [])[0]


def test_withdrawn_consent_stops_the_next_round() -> None:
    assert not round_decision(ask(2), [entry(1)], Policy(consent=False, tasks=(TASK,), budgets=POLICY.budgets))[0]


def test_unprotected_training_spoils_the_dataset_for_ever() -> None:
    policy = Policy(tasks=(TASK,), unprotected=True, budgets=POLICY.budgets)
    assert decide(invite(plan=OPEN), policy)[0]
    assert spent([entry(1, plan=OPEN)], "digits", 1e-5, one_per_charge) == NO_GUARANTEE
    assert not decide(invite(), policy, ledger=[entry(1, plan=OPEN)])[0]


def test_policy_hash_changes_with_the_policy_only() -> None:
    assert policy_hash(POLICY) == policy_hash(Policy(tasks=(TASK,), budgets={"digits": Budget(epsilon=3.0, delta=1e-5)}))
    assert policy_hash(POLICY) != policy_hash(Policy(tasks=(TASK,), budgets={"digits": Budget(epsilon=3.1, delta=1e-5)}))


@settings(max_examples=15, deadline=None)
@given(st.integers(min_value=1, max_value=40), st.floats(min_value=0.7, max_value=4.0))
def test_real_accountant_never_lets_the_ledger_pass_the_budget(rounds: int, noise: float) -> None:
    plan = PrivacyPlan("record", noise, 1.0, 0.05, 20, 1e-5)
    ledger: list[LedgerEntry] = []
    order = invite(plan=plan, rounds=rounds)
    for number in range(1, rounds + 1):
        decision = decide_round(ask(number, plan=plan), order, POLICY, ledger=ledger, now=NOON, epsilon_of=epsilon_of)
        if decision.charge:
            ledger.append(decision.charge)
    assert spent(ledger, "digits", 1e-5, epsilon_of) <= 3.0
