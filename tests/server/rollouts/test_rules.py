"""Rollout rules: tables and properties."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from covey_contract.messages import DeploymentState as D
from covey_server.rollouts.models import RolloutDeviceState as S
from covey_server.rollouts.rules import (
    TRANSITIONS,
    Decision,
    Phase,
    PhaseOutcome,
    assign_phases,
    check_phases,
    is_overdue,
    judge_phase,
    next_state,
)

NOW = datetime(2026, 11, 23, tzinfo=UTC)
COUNTED = st.builds(Phase, st.just("p"), count=st.integers(1, 10))
SHARED = st.builds(Phase, st.just("p"), percent=st.floats(1, 100))
CANARY_THEN_REST = [Phase("canary", count=1), Phase("rest")]


@pytest.mark.parametrize(
    ("outcome", "max_failures", "expected"),
    [
        (PhaseOutcome(open=2), 0, Decision.HOLD),
        (PhaseOutcome(open=1, succeeded=1), 0, Decision.HOLD),
        (PhaseOutcome(succeeded=2), 0, Decision.ADVANCE),
        (PhaseOutcome(succeeded=1, failed=1), 0, Decision.HALT),
        (PhaseOutcome(open=5, failed=1), 0, Decision.HALT),
        (PhaseOutcome(open=5, unresponsive=1), 0, Decision.HALT),
        (PhaseOutcome(succeeded=1, failed=1), 1, Decision.ADVANCE),
        (PhaseOutcome(succeeded=1, failed=1, unresponsive=1), 1, Decision.HALT),
        (PhaseOutcome(failed=1), 1, Decision.HALT),
        (PhaseOutcome(skipped=2), 0, Decision.ADVANCE),
        (PhaseOutcome(), 0, Decision.ADVANCE),
    ],
)
def test_a_gate_advances_holds_or_halts(outcome: PhaseOutcome, max_failures: int, expected: Decision) -> None:
    decision, reason = judge_phase(outcome, max_failures=max_failures)
    assert decision is expected
    assert bool(reason) == (expected is Decision.HALT)


def test_a_halt_says_how_many_and_gives_an_example() -> None:
    _, reason = judge_phase(PhaseOutcome(failed=2, unresponsive=1, example="pi-1: golden outputs differ"), max_failures=1)
    assert reason == "2 failed and 1 did not answer, 1 allowed: pi-1: golden outputs differ"


@pytest.mark.parametrize(
    ("state", "reported", "expected"),
    [
        (S.SENT, D.IDLE, S.SENT),
        (S.SENT, D.FETCHING, S.ACTIVE),
        (S.SENT, D.REFUSED, S.FAILED),
        (S.ACTIVE, D.PROBATION, S.ACTIVE),
        (S.ACTIVE, D.ROLLING_BACK, S.ACTIVE),
        (S.ACTIVE, D.COMMITTED, S.SUCCEEDED),
        (S.ACTIVE, D.ROLLED_BACK, S.FAILED),
        (S.SUCCEEDED, D.ROLLED_BACK, S.FAILED),
        (S.SUCCEEDED, D.ROLLING_BACK, S.FAILED),
        (S.SUCCEEDED, D.FETCHING, S.SUCCEEDED),
        (S.FAILED, D.COMMITTED, S.FAILED),
        (S.UNRESPONSIVE, D.COMMITTED, S.SUCCEEDED),
        (S.UNRESPONSIVE, D.FETCHING, S.UNRESPONSIVE),
        (S.SKIPPED, D.COMMITTED, S.SUCCEEDED),
    ],
)
def test_what_a_report_makes_of_a_device(state: S, reported: D, expected: S) -> None:
    assert next_state(state, reported) is expected


def test_the_transition_table_lists_every_pair() -> None:
    assert set(TRANSITIONS) == set(S)
    assert all(set(row) == set(D) for row in TRANSITIONS.values())


@given(st.sampled_from(S), st.lists(st.sampled_from(D)))
def test_a_failure_is_never_forgotten_and_a_success_needs_a_commit(start: S, reports: list[D]) -> None:
    state = start
    for report in reports:
        after = next_state(state, report)
        if state is S.FAILED:
            assert after is S.FAILED
        if after is S.SUCCEEDED and state is not S.SUCCEEDED:
            assert report is D.COMMITTED
        if report in {D.ROLLED_BACK, D.REFUSED}:
            assert after is S.FAILED
        state = after


@pytest.mark.parametrize(
    ("phases", "fault"),
    [
        ([], "1 to 20 phases"),
        ([Phase("a"), Phase("b")], "phase a must say one of"),
        ([Phase("a", count=1, percent=10.0)], "must say one of"),
        ([Phase("a", count=0)], "at least 1"),
        ([Phase("a", percent=0.0)], "above 0"),
        ([Phase("a", percent=101.0)], "at most 100"),
        ([Phase("a", max_failures=-1)], "at least 0"),
        ([Phase("a", devices=("x",)), Phase("b", devices=("x",))], "named twice"),
        (CANARY_THEN_REST, ""),
        ([Phase("a", devices=("x",)), Phase("b", percent=50.0), Phase("c")], ""),
    ],
)
def test_phases_are_checked(phases: list[Phase], fault: str) -> None:
    assert fault in check_phases(phases)
    assert bool(check_phases(phases)) == bool(fault)


def test_phases_take_named_devices_counts_and_shares_and_the_last_one_the_rest() -> None:
    devices = [f"d{i}" for i in range(100)]
    phases = [Phase("named", devices=("d7", "d8")), Phase("few", count=3), Phase("tenth", percent=7.0), Phase("rest")]
    assigned = assign_phases(devices, phases, salt="ro-1")
    sizes = [list(assigned.values()).count(number) for number in range(4)]
    assert sizes == [2, 3, 7, 88]
    assert assigned["d7"] == assigned["d8"] == 0


def test_another_rollout_has_other_canaries_and_the_same_one_the_same() -> None:
    devices = [f"d{i}" for i in range(50)]

    def canary(salt: str) -> str:
        return next(device for device, phase in assign_phases(devices, CANARY_THEN_REST, salt=salt).items() if phase == 0)

    assert canary("ro-1") == canary("ro-1")
    assert len({canary(f"ro-{i}") for i in range(20)}) > 5


@given(
    st.sets(st.text("abcdef", min_size=1, max_size=4), max_size=30),
    st.lists(
        st.one_of(st.builds(Phase, st.just("p"), count=st.integers(1, 10)), st.builds(Phase, st.just("p"), percent=st.floats(1, 100))),
        max_size=4,
    ),
    st.text(max_size=5),
)
def test_every_device_is_in_exactly_one_phase_whatever_order_they_come_in(devices: set[str], some: list[Phase], salt: str) -> None:
    phases = [*some, Phase("rest")]
    assigned = assign_phases(sorted(devices), phases, salt=salt)
    assert set(assigned) == devices
    assert all(0 <= phase < len(phases) for phase in assigned.values())
    assert assigned == assign_phases(sorted(devices, reverse=True), phases, salt=salt)


@pytest.mark.parametrize(
    ("state", "deployment", "silent_s", "expected"),
    [
        (S.SENT, "", 61, True),
        (S.SENT, "", 59, False),
        (S.ACTIVE, "fetching", 61, True),
        (S.ACTIVE, "probation", 61, False),
        (S.ACTIVE, "probation", 361, True),
        (S.SUCCEEDED, "committed", 10_000, False),
        (S.PENDING, "", 10_000, False),
    ],
)
def test_silence_past_the_deadline_is_overdue_and_probation_does_not_count(
    state: S, deployment: str, silent_s: float, expected: bool
) -> None:
    since = NOW - timedelta(seconds=silent_s)
    assert is_overdue(state, deployment, progressed_at=since, now=NOW, deadline_s=60, probation_s=300) is expected
