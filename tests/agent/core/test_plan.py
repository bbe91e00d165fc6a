"""What the agent does about a desired state."""

from dataclasses import replace

import pytest

from covey_agent.core.machine import Deployment, Machine
from covey_agent.core.plan import Current, Step, Wanted, is_newer, next_steps
from covey_contract.messages import DeploymentState as S
from covey_contract.messages import Desired, Profile, ReleaseRef

RUNNING = Deployment(id="dep-2", generation=2, manifest="2" * 64, slot="B")


def desired(generation: int, manifest: str | None, *, released: list[str] | None = None) -> Desired:
    release = None if manifest is None else ReleaseRef(model="m", version=1, manifest=manifest * 64)
    return Desired(
        device="cam-1",
        generation=generation,
        issued_at=1,
        release=release,
        deployment=f"dep-{generation}",
        released_from_quarantine=released or [],
    )


def current(state: S = S.COMMITTED, **changes: object) -> Current:
    deployment = RUNNING if state is not S.COMMITTED else None
    base = Current(
        profile=Profile.DEVICE,
        machine=Machine(state=state, committed="A", deployment=deployment),
        committed_manifest="1" * 64,
        attempted=[],
        quarantine=[],
    )
    return replace(base, **changes)  # type: ignore[arg-type]  # each test names real fields


def plan(now: Current, order: Desired, *, verified: bool = True) -> list[Step]:
    return [step.step for step in next_steps(now, Wanted(order, verified=verified))]


def test_nothing_desired_is_nothing_to_do() -> None:
    assert next_steps(current(), None) == []


def test_new_release_begins_without_waiting_for_a_second_verification() -> None:
    assert plan(current(), desired(3, "3"), verified=False) == [Step.BEGIN]


@pytest.mark.parametrize("order", [desired(3, "1"), desired(3, None), desired(3, "3", released=["f" * 64])], ids=["same", "none", "lift"])
def test_everything_else_waits_for_verification(order: Desired) -> None:
    assert plan(current(quarantine=["f" * 64]), order, verified=False) == [Step.VERIFY]


def test_release_that_runs_is_confirmed() -> None:
    assert plan(current(), desired(3, "1")) == [Step.CONFIRM]


def test_quarantined_release_is_refused() -> None:
    assert plan(current(quarantine=["3" * 64]), desired(3, "3")) == [Step.REFUSE]


def test_order_may_lift_the_quarantine_of_what_it_orders() -> None:
    assert plan(current(quarantine=["3" * 64]), desired(3, "3", released=["3" * 64])) == [Step.LIFT_QUARANTINE, Step.BEGIN]


def test_deployment_is_attempted_once() -> None:
    assert plan(current(attempted=["dep-3"]), desired(3, "3")) == []


def test_partner_deploys_nothing() -> None:
    assert plan(current(profile=Profile.PARTNER), desired(3, "3")) == [Step.REFUSE]


@pytest.mark.parametrize("state", [S.FETCHING, S.VERIFYING, S.STAGED, S.ACTIVATING, S.PROBATION])
def test_newer_release_supersedes_a_running_deployment(state: S) -> None:
    assert plan(current(state), desired(3, "3")) == [Step.SUPERSEDE]
    assert plan(current(state), desired(3, "3"), verified=False) == [Step.VERIFY]


def test_same_release_under_a_newer_generation_waits_for_the_running_one() -> None:
    assert plan(current(S.FETCHING), desired(3, "2")) == []


def test_keep_what_runs_lets_probation_go_on_but_stops_a_download() -> None:
    assert plan(current(S.PROBATION), desired(3, None)) == []
    assert plan(current(S.FETCHING), desired(3, None)) == [Step.SUPERSEDE]


def test_running_rollback_is_never_disturbed() -> None:
    assert plan(current(S.ROLLING_BACK), desired(3, "3")) == []


def test_order_that_is_being_carried_out_needs_nothing() -> None:
    assert plan(current(S.FETCHING), desired(2, "2"), verified=False) == []


@pytest.mark.parametrize(("generation", "newer"), [(4, False), (5, False), (6, True)])
def test_highest_generation_wins(generation: int, newer: bool) -> None:
    assert is_newer(generation, floor=3, candidate=5) is newer
    assert is_newer(generation, floor=5, candidate=0) is newer
