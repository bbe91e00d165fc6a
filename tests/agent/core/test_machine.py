"""The deployment machine: every pair of the table, and what no sequence of events may ever bring about."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from covey_agent.core.machine import (
    IN_FLIGHT,
    MAX_BOOTS,
    RESTING,
    TABLE,
    Action,
    Deployment,
    Event,
    Happened,
    Machine,
    UnlistedPairError,
    lift_quarantine,
    serving_slot,
    step,
)
from covey_contract.messages import DeploymentState as S
from covey_contract.messages import Quarantined

E = Event
NOW = 1_795_000_000_000
ORDER = Deployment(id="dep-2", generation=2, model="digits", version=2, manifest="m" * 64)
RUNNING = replace(ORDER, slot="B", artifact="a" * 64, started_at=1, changed_at=1)

PROVEN = replace(ORDER, id="dep-1", generation=1, version=1, slot="A", artifact="b" * 64)

# Written out a second time, by hand: the table is the specification, and a change to it must be made twice.
EXPECTED = """
idle          ordered fetching | already_runs committed | order_refused refused | booted idle | stumbled idle
committed     ordered fetching | already_runs committed | order_refused refused | booted committed | stumbled committed
committed     late_evidence rolling_back
rolled_back   ordered fetching | already_runs committed | order_refused refused | booted rolled_back | stumbled rolled_back
rolled_back   late_evidence rolling_back | control_back rolled_back
refused       ordered fetching | already_runs committed | order_refused refused | booted refused | stumbled refused
refused       late_evidence rolling_back
fetching      variant_chosen fetching | progressed fetching | fetched verifying | deploy_refused refused | deploy_failed fetching
fetching      deploy_died fetching | deploy_died_again rolling_back | retry_due fetching | superseded rolling_back
fetching      booted fetching | booted_again rolling_back | steady fetching
verifying     check_passed staged | check_failed rolling_back | superseded rolling_back | booted verifying | booted_again rolling_back
staged        activation_begun activating | superseded rolling_back | booted staged | booted_again rolling_back
activating    new_worker_ready probation | new_worker_failed rolling_back | superseded rolling_back
activating    booted activating | booted_again rolling_back
probation     served probation | evidence rolling_back | probation_passed committed | superseded rolling_back
probation     booted probation | booted_again rolling_back | control_lost rolling_back
rolling_back  old_serves rolled_back | old_failed rolled_back | booted rolling_back | booted_again rolled_back
fetching      stumbled fetching | stumbled_again rolling_back
verifying     stumbled verifying | stumbled_again rolling_back
staged        stumbled staged | stumbled_again rolling_back
activating    stumbled activating | stumbled_again rolling_back
probation     stumbled probation | stumbled_again rolling_back
rolling_back  stumbled rolling_back | stumbled_again rolled_back
"""


def expected_table() -> dict[tuple[S, Event], S]:
    table = {}
    for line in EXPECTED.strip().splitlines():
        state, rest = line.split(maxsplit=1)
        for pair in rest.split("|"):
            event, target = pair.split()
            table[S(state), Event(event)] = S(target)
    return table


def machine_in(state: S, *, boots: int = 0, crashes: int = 0) -> Machine:
    """Slot B was proven before A, which deployment dep-1 brought."""
    deployment = replace(RUNNING, boots=boots, crashes=crashes)
    return Machine(state=state, committed="A", deployment=deployment, previous="B", proven=PROVEN)


@pytest.mark.parametrize("event", list(Event), ids=lambda event: event.value)
@pytest.mark.parametrize("state", list(S), ids=lambda state: state.value)
def test_every_pair_goes_where_the_specification_says(state: S, event: Event) -> None:
    target = expected_table().get((state, event))
    machine = machine_in(state)
    happened = Happened(event, deployment=ORDER)
    if target is None:
        with pytest.raises(UnlistedPairError):
            step(machine, happened, NOW)
    else:
        assert step(machine, happened, NOW)[0].state is target


def test_table_lists_nothing_else() -> None:
    assert set(TABLE) == set(expected_table())


def test_new_release_goes_to_the_slot_that_is_not_proven() -> None:
    after, actions = step(Machine(state=S.COMMITTED, committed="A"), Happened(E.ORDERED, deployment=ORDER), NOW)
    assert after.deployment is not None
    assert (after.deployment.slot, after.committed, after.deployment.started_at) == ("B", "A", NOW)
    assert actions[0] is Action.START_DEPLOY


def test_only_passing_probation_changes_the_proven_slot() -> None:
    for state, event in TABLE:
        after, _ = step(machine_in(state), Happened(event, deployment=ORDER), NOW)
        assert after.committed == ("B" if event in {E.PROBATION_PASSED, E.LATE_EVIDENCE} else "A"), (state, event)


@pytest.mark.parametrize("state", [S.COMMITTED, S.ROLLED_BACK, S.REFUSED])
def test_a_proven_model_that_turns_bad_gives_way_to_the_one_before_and_its_verdict_is_reopened(state: S) -> None:
    after, actions = step(machine_in(state), Happened(E.LATE_EVIDENCE, reason="it keeps dying"), NOW)
    assert after.deployment is not None
    assert (after.deployment.id, after.deployment.reason, after.state) == ("dep-1", "it keeps dying", S.ROLLING_BACK)
    assert (after.committed, after.previous, serving_slot(after)) == ("B", "", "B")
    assert after.quarantine == (Quarantined(digest="b" * 64, reason="it keeps dying", at=NOW),)
    assert Action.RESTORE_OLD in actions
    again, _ = step(after, Happened(E.OLD_SERVES, rollback_ms=3.0), NOW)
    with pytest.raises(UnlistedPairError):  # once only: there is nothing left to go back to
        step(again, Happened(E.LATE_EVIDENCE), NOW)


def test_the_way_back_ends_when_its_slot_is_ordered_to_be_filled() -> None:
    after, _ = step(machine_in(S.COMMITTED), Happened(E.ORDERED, deployment=ORDER), NOW)
    assert (after.previous, after.proven) == ("", PROVEN)


def test_a_lost_connection_is_no_guilt() -> None:
    after, _ = step(machine_in(S.PROBATION), Happened(E.CONTROL_LOST, reason="away"), NOW)
    assert (after.state, after.quarantine) == (S.ROLLING_BACK, ())


def test_new_slot_serves_in_probation_only() -> None:
    for state in S:
        assert serving_slot(machine_in(state)) == ("B" if state is S.PROBATION else "A")


@pytest.mark.parametrize(
    ("state", "event"),
    [(S.VERIFYING, E.CHECK_FAILED), (S.ACTIVATING, E.NEW_WORKER_FAILED), (S.PROBATION, E.EVIDENCE)],
)
def test_failure_of_the_artifact_is_quarantined_with_its_reason(state: S, event: Event) -> None:
    after, actions = step(machine_in(state), Happened(event, reason="it died"), NOW)
    assert after.quarantine == (Quarantined(digest="a" * 64, reason="it died", at=NOW),)
    assert Action.RESTORE_OLD in actions


def test_being_superseded_is_nobodys_fault() -> None:
    after, _ = step(machine_in(S.PROBATION), Happened(E.SUPERSEDED, reason="newer"), NOW)
    assert after.quarantine == ()


def test_release_is_to_blame_while_no_variant_is_chosen() -> None:
    machine = Machine(state=S.FETCHING, deployment=replace(RUNNING, artifact="", crashes=2))
    after, _ = step(machine, Happened(E.DEPLOY_DIED, reason="killed"), NOW)
    assert [entry.digest for entry in after.quarantine] == ["m" * 64]


@pytest.mark.parametrize("state", [state for state in S if state in IN_FLIGHT and state is not S.ROLLING_BACK])
def test_reboot_loop_is_broken_after_three_boots(state: S) -> None:
    machine = machine_in(state)
    for _ in range(MAX_BOOTS):
        machine, _ = step(machine, Happened(E.BOOTED), NOW)
        assert machine.state is state
    machine, actions = step(machine, Happened(E.BOOTED), NOW)
    assert machine.state is S.ROLLING_BACK
    assert Action.RESTORE_OLD in actions


def test_reboot_loop_in_a_rollback_ends_it() -> None:
    machine = machine_in(S.ROLLING_BACK, boots=MAX_BOOTS)
    machine, actions = step(machine, Happened(E.BOOTED), NOW)
    assert machine.state is S.ROLLED_BACK
    assert Action.SERVE in actions


def test_progress_of_a_download_forgives_reboots() -> None:
    machine = machine_in(S.FETCHING, boots=3)
    same, _ = step(machine, Happened(E.PROGRESSED, chunks_done=0), NOW)
    further, _ = step(machine, Happened(E.PROGRESSED, chunks_done=7), NOW)
    assert same.deployment is not None
    assert further.deployment is not None
    assert (same.deployment.boots, further.deployment.boots) == (3, 0)


def test_a_minute_of_probation_forgives_reboots() -> None:
    machine = machine_in(S.PROBATION, boots=3)
    after, _ = step(machine, Happened(E.SERVED, served_s=61.0), NOW)
    assert after.deployment is not None
    assert (after.deployment.boots, after.deployment.served_s) == (0, 61.0)


def test_lifting_a_quarantine_keeps_the_others() -> None:
    entries = tuple(Quarantined(digest=letter * 64, reason="r", at=1) for letter in "ab")
    assert lift_quarantine(Machine(quarantine=entries), ["a" * 64]).quarantine == entries[1:]


def test_reason_is_cut_to_what_the_contract_allows() -> None:
    after, _ = step(machine_in(S.PROBATION), Happened(E.EVIDENCE, reason="x" * 2000), NOW)
    assert after.deployment is not None
    assert len(after.deployment.reason) == 500


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(list(Event)), max_size=40))
def test_any_sequence_of_events_and_reboots_leaves_exactly_one_slot_to_serve(events: list[Event]) -> None:
    machine = Machine(state=S.COMMITTED, committed="A")
    proven, previous = {"A"}, ""
    for number, event in enumerate(events):
        order = replace(ORDER, id=f"dep-{number}", artifact=f"{number:064d}")
        try:
            machine, actions = step(machine, Happened(event, reason="r", deployment=order), NOW)
        except UnlistedPairError:
            continue
        if event is E.PROBATION_PASSED:
            proven = {machine.committed}
        elif event is E.LATE_EVIDENCE:
            assert machine.committed == previous != ""
            proven = {machine.committed}
        previous = machine.previous
        assert machine.committed in proven
        if machine.deployment is not None and machine.state in IN_FLIGHT:
            # A model that is being taken back lies in its slot still; that slot is proven no longer.
            assert machine.deployment.slot not in proven, "a proven slot is never filled"
        if machine.state is S.ROLLING_BACK:
            assert Action.RESTORE_OLD in actions
        expected = machine.deployment.slot if machine.deployment and machine.state is S.PROBATION else machine.committed
        assert serving_slot(machine) == expected in ("A", "B")


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from(list(Event)), max_size=25))
def test_rebooting_often_enough_always_comes_to_rest(events: list[Event]) -> None:
    machine = Machine(state=S.COMMITTED, committed="A")
    for event in events:
        try:
            machine, _ = step(machine, Happened(event, deployment=ORDER), NOW)
        except UnlistedPairError:
            continue
    for _ in range(3 * MAX_BOOTS):
        machine, _ = step(machine, Happened(E.BOOTED), NOW)
    assert machine.state in RESTING
