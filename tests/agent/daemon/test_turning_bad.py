"""What happens to a model after its first minutes: a proven one that turns bad, one that hangs, one that takes the connection along."""

from pathlib import Path

import pytest
from tests.agent.daemon.test_deployments import QUIET, READY, accept, deploy, keep_alive, stage
from tests.fakes.agent.outside import Life, World, artifact, desired, inference

from covey_agent.core.jobs import Accepting, Drain, InferWindow, Verified
from covey_contract.messages import DeploymentReport, Reported
from covey_contract.messages import DeploymentState as S


def report(life: Life) -> tuple[Reported, DeploymentReport]:
    """What the device says, and of its deployment."""
    said = life.reported()
    assert said.deployment is not None
    return said, said.deployment


@pytest.fixture
def second(tmp_path: Path) -> tuple[World, Life]:
    """A device that has committed release 2 in slot B after release 1 in slot A."""
    world = World(tmp_path, settings=inference(control_loss_s=30.0, hang_timeout_s=10.0))
    life = world.boot()
    life.connect()
    for version in (1, 2):
        deploy(world, life, version, version)
        keep_alive(life, 11)
    drained = life.worker("A")
    assert drained is not None
    assert isinstance(drained.orders[-1], Drain)
    drained.ends(clean=True)
    life.settle()
    assert report(life)[1].state is S.COMMITTED
    return world, life


def die(life: Life, slot: str, *, times: int) -> None:
    """The worker of a slot dies, and is started again, so many times."""
    for _ in range(times):
        worker = life.worker(slot)
        assert worker is not None
        worker.ends("killed by SIGSEGV")
        life.settle()
        life.advance(10)


def test_a_proven_model_that_keeps_dying_goes_back_and_its_verdict_is_reopened(second: tuple[World, Life]) -> None:
    _, life = second
    die(life, "B", times=2)
    assert report(life)[1].state is S.COMMITTED
    die(life, "B", times=1)
    said, deployment = report(life)
    assert (deployment.deployment, deployment.state, said.active_slot) == ("dep-2", S.ROLLING_BACK, "A")
    old = life.worker("A")
    assert old is not None
    old.says(READY)
    said, deployment = report(life)
    assert (deployment.state, said.serving) == (S.ROLLED_BACK, True)
    assert "after its probation" in deployment.reason
    assert "SIGSEGV" in deployment.reason
    assert deployment.rollback_ms is not None
    assert [entry.digest for entry in said.quarantine] == [artifact(2)]
    life.order(desired(2, 2))
    keep_alive(life, 3)
    assert not life.running("deploy"), "the same order is not carried out again"


def test_it_stays_back_after_a_reboot_and_after_the_loss_of_the_database(second: tuple[World, Life]) -> None:
    world, life = second
    die(life, "B", times=3)
    again = world.boot()
    assert again.accepting() == ["A"]
    again.database.close()
    for file in world.state_dir.glob("state.db*"):
        file.unlink()
    life = world.boot()
    life.connect()
    assert life.accepting() == ["A"]
    assert [entry.digest for entry in life.reported().quarantine] == [artifact(2)]


def test_deaths_far_apart_are_no_evidence(second: tuple[World, Life]) -> None:
    _, life = second
    for _ in range(5):
        die(life, "B", times=1)
        worker = life.worker("B")
        assert worker is not None
        worker.says(READY)
        keep_alive(life, 620)
    assert report(life)[1].state is S.COMMITTED


def test_a_proven_model_is_held_to_its_bounds(second: tuple[World, Life]) -> None:
    _, life = second
    worker = life.worker("B")
    assert worker is not None
    worker.says(InferWindow(requests=20, inputs=20, errors=20))
    assert report(life)[1].state is S.COMMITTED, "a handful is not enough to give up what was proven"
    worker.says(InferWindow(requests=40, inputs=40, errors=10))
    assert "30 of 60 requests failed" in report(life)[1].reason


def test_without_a_way_back_the_worker_is_started_again_for_ever(tmp_path: Path) -> None:
    world = World(tmp_path)
    life = world.boot()
    life.connect()
    deploy(world, life, 1, 1)
    keep_alive(life, 11)
    for _ in range(6):
        worker = life.worker("A")
        assert worker is not None
        worker.ends("killed by SIGSEGV")
        life.settle()
        life.advance(20)
    assert report(life)[1].state is S.COMMITTED
    assert life.worker("A") is not None


def test_the_way_back_is_gone_once_the_next_release_fills_its_slot(second: tuple[World, Life]) -> None:
    world, life = second
    deploy(world, life, 3, 3)
    new = life.worker("A")
    assert new is not None
    new.ends("killed by SIGABRT")
    life.settle()
    old = life.worker("B")
    assert old is not None
    old.says(Accepting())
    assert report(life)[1].state is S.ROLLED_BACK
    die(life, "B", times=4)
    said, deployment = report(life)
    assert (deployment.deployment, deployment.state, said.active_slot) == ("dep-3", S.ROLLED_BACK, "B")


def test_a_proven_slot_that_was_damaged_gives_way_at_the_next_start(second: tuple[World, Life]) -> None:
    world, life = second
    life.database.close()
    (world.state_dir / "slots" / "B" / "slot.json").write_bytes(b"{")
    life = world.boot()
    life.connect()
    assert life.accepting() == ["A"]
    assert "no longer complete" in report(life)[1].reason


def test_a_way_back_to_a_slot_that_is_not_whole_is_none(second: tuple[World, Life]) -> None:
    world, life = second
    (world.state_dir / "slots" / "A" / "slot.json").unlink()
    die(life, "B", times=4)
    assert report(life)[1].state is S.COMMITTED
    assert life.worker("B") is not None, "a model that turns bad is still better than none"


def test_a_request_that_never_ends_is_seen_though_the_worker_reports(second: tuple[World, Life]) -> None:
    world, life = second
    deploy(world, life, 3, 3)
    new = life.worker("A")
    assert new is not None
    new.says(busy(9.0))
    life.settle()
    assert report(life)[1].state is S.PROBATION
    new.says(busy(11.0))
    life.settle()
    assert "hangs: one request has been with the model for 11 s" in report(life)[1].reason
    assert life.accepting() == ["B"]


def busy(busy_s: float) -> InferWindow:
    """A sign of life of a worker whose model has been at one request for so long."""
    return InferWindow(requests=0, inputs=0, errors=0, busy_s=busy_s)


def probation(world: World, life: Life, *, probation_s: float) -> None:
    """Release 3 serves on probation."""
    life.order(desired(3, 3, probation_s=probation_s))
    stage(world, life, 3)
    accept(life, "A")


@pytest.mark.parametrize(("away_s", "verdict"), [(3, "the new model had broken it"), (90, "the network was to blame")])
def test_a_connection_that_worked_before_and_is_lost_for_long_sends_the_model_back(
    second: tuple[World, Life], away_s: float, verdict: str
) -> None:
    world, life = second
    probation(world, life, probation_s=600)
    life.disconnect()
    keep_alive(life, 20)
    life.connect()
    keep_alive(life, 60)
    assert report(life)[1].state is S.PROBATION, "an outage that passes is none of its doing"
    life.disconnect()
    keep_alive(life, 31)
    old = life.worker("B")
    assert old is not None
    old.says(QUIET)
    keep_alive(life, away_s)
    life.connect()
    said, deployment = report(life)
    assert (deployment.state, said.active_slot, said.quarantine) == (S.ROLLED_BACK, "B", [])
    assert "connection to the server" in deployment.reason
    assert verdict in deployment.reason
    life.disconnect()
    life.connect()
    assert report(life)[1].reason == deployment.reason, "it is judged once"


def test_probation_does_not_end_well_while_the_connection_is_away(second: tuple[World, Life]) -> None:
    world, life = second
    probation(world, life, probation_s=10)
    life.disconnect()
    keep_alive(life, 20)
    assert life.agent._hub.deployments.machine.state is S.PROBATION
    life.connect()
    assert report(life)[1].state is S.COMMITTED


def test_a_device_that_was_offline_before_is_not_judged_by_its_connection(second: tuple[World, Life]) -> None:
    world, life = second
    life.order(desired(3, 3))
    life.disconnect()
    stage(world, life, 3)
    accept(life, "A")
    keep_alive(life, 45)
    life.connect()
    assert report(life)[1].state is S.COMMITTED


def test_a_lost_connection_is_remembered_over_a_reboot(second: tuple[World, Life]) -> None:
    world, life = second
    probation(world, life, probation_s=600)
    life.database.close()
    life = world.boot()
    worker = life.worker("A")
    assert worker is not None
    worker.says(READY)
    keep_alive(life, 35)
    old = life.worker("B")
    assert old is not None
    old.says(READY)
    life.connect()
    assert report(life)[1].state is S.ROLLED_BACK


def test_a_verified_order_lets_it_be_tried_again(second: tuple[World, Life]) -> None:
    _, life = second
    die(life, "B", times=3)
    old = life.worker("A")
    assert old is not None
    old.says(READY)
    life.order(desired(3, 2, released=[artifact(2)]))
    life.speak("verify", Verified())
    keep_alive(life, 1)
    assert life.running("deploy")
