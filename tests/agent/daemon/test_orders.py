"""Orders that cross each other: several while the device was away, twice, out of order, and a way back at every step."""

from collections.abc import Callable
from pathlib import Path

import pytest
from tests.agent.daemon.test_deployments import READY, accept, deploy, keep_alive, stage
from tests.fakes.agent.outside import Life, World, artifact, desired, sign

from covey_agent.core.jobs import CheckPassed, DeployJob, FetchProgress, Staged, VariantChosen, Verified
from covey_contract.messages import DeploymentState

State = DeploymentState


@pytest.fixture
def served(tmp_path: Path) -> tuple[World, Life]:
    """A device that serves release 1 from slot A."""
    world = World(tmp_path)
    life = world.boot()
    life.connect()
    deploy(world, life, 1, 1)
    keep_alive(life, 11)
    return world, life


def state(life: Life) -> tuple[str, State]:
    """(deployment, state) as the device reports it."""
    report = life.reported().deployment
    assert report is not None
    return report.deployment, report.state


def deploys(life: Life) -> int:
    """How many deploy children were ever started."""
    return sum(child.program == "deploy" for child in life.children.started)


@pytest.mark.parametrize("arrival", [[2, 3, 4], [4, 3, 2], [3, 4, 2], [4, 4, 4]], ids=["in order", "reversed", "mixed", "repeated"])
def test_of_several_orders_that_waited_only_the_newest_is_carried_out(served: tuple[World, Life], arrival: list[int]) -> None:
    world, life = served
    life.disconnect()
    life.connect()
    for generation in arrival:
        life.receive("down/desired", sign(desired(generation, generation)))
    while life.running("verify"):
        life.speak("verify", Verified())
    keep_alive(life, 2)
    stage(world, life, 4)
    accept(life, "B")
    keep_alive(life, 11)
    assert state(life) == ("dep-4", State.COMMITTED)
    assert life.agent._hub.deployments.machine.committed == "B"
    assert life.accepting() == ["B"]


def test_an_order_that_comes_again_after_it_was_carried_out_starts_nothing(served: tuple[World, Life]) -> None:
    world, life = served
    deploy(world, life, 2, 2)
    keep_alive(life, 11)
    before = deploys(life)
    for _ in range(3):
        life.disconnect()
        life.connect()
        life.receive("down/desired", sign(desired(2, 2)))
        keep_alive(life, 2)
    life = world.boot()
    life.connect()
    life.receive("down/desired", sign(desired(2, 2)))
    assert (before, deploys(life)) == (2, 0)
    assert state(life) == ("dep-2", State.COMMITTED)


def reach_fetching(world: World, life: Life) -> None:
    """The order has come and chunks arrive."""
    life.order(desired(2, 2))
    life.speak("deploy", VariantChosen(variant="onnx-int8", artifact=artifact(2), reason="smallest", manifest="m"))
    life.speak("deploy", FetchProgress(chunks_done=1, chunks_total=2, bytes_received=65536))


def reach_verifying(world: World, life: Life) -> None:
    """The slot is filled and its golden inputs are being checked."""
    reach_fetching(world, life)
    job = life.child("deploy").job
    assert isinstance(job, DeployJob)
    world.fill_slot(Path(job.slot_dir).name, 2)
    life.speak("deploy", Staged(slot_dir=job.slot_dir, variant="onnx-int8", artifact=artifact(2), manifest="m"))


def reach_activating(world: World, life: Life) -> None:
    """The new worker loads its model."""
    reach_verifying(world, life)
    life.speak("check", CheckPassed(relative_error=0.0, latency_ms=1.0))


def reach_probation(world: World, life: Life) -> None:
    """The new model serves."""
    reach_activating(world, life)
    accept(life, "B")


@pytest.mark.parametrize(
    ("reach", "expected"),
    [
        (reach_fetching, State.FETCHING),
        (reach_verifying, State.VERIFYING),
        (reach_activating, State.ACTIVATING),
        (reach_probation, State.PROBATION),
    ],
    ids=["fetching", "verifying", "activating", "probation"],
)
def test_the_way_back_is_clean_from_every_step(served: tuple[World, Life], reach: Callable[[World, Life], None], expected: State) -> None:
    world, life = served
    reach(world, life)
    assert state(life) == ("dep-2", expected)
    life.order(desired(3, 1))
    life.speak("verify", Verified())
    old = life.worker("A")
    assert old is not None
    old.says(READY)
    keep_alive(life, 3)
    assert state(life) == ("dep-3", State.COMMITTED)  # release 1 runs already
    report = life.reported()
    assert (report.active_slot, report.serving, report.quarantine) == ("A", True, [])
    assert life.accepting() == ["A"]
    assert not life.running("deploy")
    assert not life.running("check")


def test_a_way_back_that_comes_after_the_commit_is_a_deployment_of_its_own(served: tuple[World, Life]) -> None:
    world, life = served
    deploy(world, life, 2, 2)
    keep_alive(life, 11)
    assert state(life) == ("dep-2", State.COMMITTED)
    drained = life.worker("A")
    assert drained is not None
    drained.ends(clean=True)
    life.order(desired(3, 1))
    stage(world, life, 1)
    accept(life, "A")
    keep_alive(life, 11)
    assert state(life) == ("dep-3", State.COMMITTED)
    assert life.accepting() == ["A"]


def test_nothing_desired_stops_a_download_and_keeps_what_runs(served: tuple[World, Life]) -> None:
    world, life = served
    reach_fetching(world, life)
    life.order(desired(3, None))
    life.speak("verify", Verified())
    keep_alive(life, 2)
    assert state(life) == ("dep-2", State.ROLLED_BACK)
    assert life.accepting() == ["A"]
    assert not life.running("deploy")
