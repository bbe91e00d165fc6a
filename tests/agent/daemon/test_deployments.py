"""Deployments through the whole daemon: real state on a real disk, fake children, a clock that stands still."""

from contextlib import suppress
from pathlib import Path

import pytest
from tests.fakes.agent.outside import FullDatabase, Life, PowerCutError, World, artifact, desired, inference

from covey_agent.core.jobs import (
    Accepting,
    CheckFailed,
    CheckPassed,
    DeployFailed,
    DeployJob,
    DeployRefused,
    Drain,
    FetchProgress,
    InferReady,
    InferWindow,
    Pause,
    Probed,
    Rejected,
    Resume,
    Staged,
    VariantChosen,
    Verified,
    VerifyFailed,
)
from covey_agent.daemon.live import read_live
from covey_contract.messages import Capabilities, DeploymentState, Profile
from covey_contract.release import Bounds

READY = InferReady(load_ms=1.0)
QUIET = InferWindow(requests=0, inputs=0, errors=0)
CAPABLE = Probed(capabilities=Capabilities(arch="x86_64", runtimes={"onnxruntime": "1.31.1"}), at=1)


def stage(world: World, life: Life, version: int, *, bounds: Bounds | None = None) -> None:
    """The deploy and check children do their work."""
    if life.running("probe"):
        life.speak("probe", CAPABLE)
    job = life.child("deploy").job
    assert isinstance(job, DeployJob)
    slot = Path(job.slot_dir).name
    life.speak("deploy", VariantChosen(variant="onnx-int8", artifact=artifact(version), reason="smallest", manifest="m"))
    life.speak("deploy", FetchProgress(chunks_done=1, chunks_total=2, bytes_received=65536))
    world.fill_slot(slot, version, bounds=bounds)
    life.speak("deploy", Staged(slot_dir=job.slot_dir, variant="onnx-int8", artifact=artifact(version), manifest="m"))
    life.speak("check", CheckPassed(relative_error=0.0, latency_ms=1.0))


def deploy(world: World, life: Life, generation: int, version: int, *, bounds: Bounds | None = None) -> str:
    """Order a release and bring it into probation; returns its slot."""
    life.order(desired(generation, version))
    stage(world, life, version, bounds=bounds)
    machine = life.agent._hub.deployments.machine
    assert machine.deployment is not None
    accept(life, machine.deployment.slot)
    return machine.deployment.slot


def accept(life: Life, slot: str) -> None:
    """The worker of a slot loads its model and serves."""
    worker = life.worker(slot)
    assert worker is not None
    worker.says(READY)
    life.settle()
    worker.says(QUIET)
    life.settle()


def keep_alive(life: Life, seconds: float) -> None:
    """Workers give signs of life while time passes."""
    for _ in range(int(seconds)):
        for worker in life.running("infer"):
            worker.says(QUIET)
        life.advance(1.0)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


@pytest.fixture
def served(world: World) -> tuple[World, Life]:
    """A device that serves release 1 from slot A."""
    life = world.boot()
    life.connect()
    assert deploy(world, life, 1, 1) == "A"
    keep_alive(life, 11)
    assert life.reported().deployment.state is DeploymentState.COMMITTED  # type: ignore[union-attr]  # it has one
    return world, life


def test_first_release_is_committed_only_after_probation(world: World) -> None:
    life = world.boot()
    life.connect()
    deploy(world, life, 1, 1)
    report = life.reported()
    assert report.deployment is not None
    assert (report.deployment.state, report.active_slot, report.serving) == (DeploymentState.PROBATION, "A", True)
    keep_alive(life, 8)
    assert life.reported().deployment.state is DeploymentState.PROBATION  # type: ignore[union-attr]  # it has one
    keep_alive(life, 3)
    report = life.reported()
    assert report.deployment is not None
    assert report.deployment.state is DeploymentState.COMMITTED
    assert report.desired_generation == 1
    assert report.deployment.variant_reason == "smallest"


def test_old_worker_stays_warm_through_probation_and_is_drained_after(served: tuple[World, Life]) -> None:
    world, life = served
    assert deploy(world, life, 2, 2) == "B"
    old = life.worker("A")
    assert old is not None
    assert isinstance(old.orders[-1], Pause)
    assert life.accepting() == ["B"]
    keep_alive(life, 11)
    assert isinstance(old.orders[-1], Drain)
    assert life.accepting() == ["B"]


def test_crash_in_probation_brings_the_old_model_back_at_once(served: tuple[World, Life]) -> None:
    world, life = served
    deploy(world, life, 2, 2)
    new, old = life.worker("B"), life.worker("A")
    assert new is not None
    assert old is not None
    new.ends("killed by SIGSEGV")
    life.settle()
    assert isinstance(old.orders[-1], Resume)
    assert life.reported().deployment.state is DeploymentState.ROLLING_BACK  # type: ignore[union-attr]  # it has one
    life.advance(0.02, step_s=0.02)
    old.says(Accepting())
    report = life.reported()
    assert report.deployment is not None
    assert report.deployment.state is DeploymentState.ROLLED_BACK
    assert "SIGSEGV" in report.deployment.reason
    assert report.deployment.rollback_ms == pytest.approx(120, abs=1)
    assert [entry.digest for entry in report.quarantine] == [artifact(2)]
    assert (report.active_slot, life.accepting()) == ("A", ["A"])


def test_evidence_in_a_window_rolls_back(served: tuple[World, Life]) -> None:
    world, life = served
    deploy(world, life, 2, 2, bounds=Bounds(max_error_rate=0.1))
    new = life.worker("B")
    assert new is not None
    new.says(InferWindow(requests=10, inputs=10, errors=9))
    life.settle()
    assert isinstance(new.orders[-1], Drain), "what it has accepted it may still answer"
    assert life.accepting() == ["A"]
    life.advance(6)
    assert new.gone, "but not for long"


def test_crash_of_the_runtime_in_the_check_never_touches_the_old_model(served: tuple[World, Life]) -> None:
    world, life = served
    old = life.worker("A")
    assert old is not None
    orders = list(old.orders)
    life.order(desired(2, 2))
    life.speak("deploy", VariantChosen(variant="v", artifact=artifact(2), reason="r", manifest="m"))
    world.fill_slot("B", 2)
    life.speak("deploy", Staged(slot_dir="B", variant="v", artifact=artifact(2), manifest="m"))
    life.child("check").ends("killed by SIGILL")
    life.settle()
    report = life.reported()
    assert report.deployment is not None
    assert report.deployment.state is DeploymentState.ROLLED_BACK
    assert report.deployment.reason == "the check child killed by SIGILL"
    assert report.deployment.rollback_ms is not None
    assert old.orders == orders
    assert [entry.digest for entry in report.quarantine] == [artifact(2)]


def test_wrong_golden_outputs_are_quarantined(served: tuple[World, Life]) -> None:
    world, life = served
    life.order(desired(2, 2))
    world.fill_slot("B", 2)
    life.speak("deploy", Staged(slot_dir="B", variant="v", artifact=artifact(2), manifest="m"))
    life.speak("check", CheckFailed(reason="relative error 3.1, allowed 0.1"))
    report = life.reported()
    assert report.deployment is not None
    assert (report.deployment.state, report.deployment.reason) == (DeploymentState.ROLLED_BACK, "relative error 3.1, allowed 0.1")


def test_new_worker_that_never_loads_is_killed_and_rolled_back(tmp_path: Path) -> None:
    world = World(tmp_path, settings=inference(ready_timeout_s=5.0))
    life = world.boot()
    life.connect()
    life.order(desired(1, 1))
    stage(world, life, 1)
    life.advance(6)
    report = life.reported()
    assert report.deployment is not None
    assert report.deployment.state is DeploymentState.ROLLED_BACK
    assert "no answer within 5 s" in report.deployment.reason
    assert not report.serving


def test_old_model_that_does_not_resume_is_started_cold(served: tuple[World, Life]) -> None:
    world, life = served
    deploy(world, life, 2, 2)
    new, old = life.worker("B"), life.worker("A")
    assert new is not None
    assert old is not None
    new.ends("killed by SIGKILL")
    life.advance(5, step_s=0.5)
    assert old.gone
    cold = life.worker("A")
    assert cold is not None
    assert cold is not old
    cold.says(READY)
    assert life.reported().deployment.state is DeploymentState.ROLLED_BACK  # type: ignore[union-attr]  # it has one


def test_hanging_worker_is_killed_and_started_again(served: tuple[World, Life]) -> None:
    _, life = served
    old = life.worker("A")
    assert old is not None
    life.advance(25)
    assert old.gone
    new = life.worker("A")
    assert new is not None
    new.says(READY)
    assert life.reported().serving


def test_one_deployment_is_carried_out_at_most_once(served: tuple[World, Life]) -> None:
    world, life = served
    life.order(desired(2, 2))
    life.speak("deploy", DeployRefused(reason="no variant fits"))
    assert life.reported().deployment.state is DeploymentState.REFUSED  # type: ignore[union-attr]  # it has one
    started = len(life.children.started)
    life.speak("verify", Verified())
    life.order(desired(2, 2))
    life = world.boot()
    life.connect()
    life.order(desired(2, 2))
    assert not life.running("deploy")
    assert started


def test_failed_fetch_is_tried_again_and_at_once_when_the_broker_returns(served: tuple[World, Life]) -> None:
    _, life = served
    life.order(desired(2, 2))
    life.speak("deploy", DeployFailed(reason="the server is away"))
    assert not life.running("deploy")
    assert life.reported().deployment.reason == "the server is away"  # type: ignore[union-attr]  # it has one
    life.disconnect()
    life.connect()
    life.advance(1.1)
    assert life.child("deploy")


def test_deploy_child_that_dies_three_times_is_given_up(served: tuple[World, Life]) -> None:
    _, life = served
    life.order(desired(2, 2))
    for _ in range(3):
        life.child("deploy").ends("killed by SIGBUS")
        keep_alive(life, 40)
    report = life.reported()
    assert report.deployment is not None
    assert report.deployment.state is DeploymentState.ROLLED_BACK
    assert "SIGBUS" in report.deployment.reason


def test_newer_desired_supersedes_only_after_it_was_verified(served: tuple[World, Life]) -> None:
    _, life = served
    life.order(desired(2, 2))
    life.order(desired(3, 3))
    assert len(life.running("deploy")) == 1
    life.speak("verify", Verified())
    job = life.child("deploy").job
    assert isinstance(job, DeployJob)
    report = life.reported()
    assert report.deployment is not None
    assert (report.deployment.deployment, report.deployment.state) == ("dep-3", DeploymentState.FETCHING)
    assert job.min_generation == 3


def test_forged_desired_changes_nothing(served: tuple[World, Life]) -> None:
    _, life = served
    life.order(desired(2, 2))
    life.order(desired(999, None))
    life.speak("verify", Rejected(reason="not signed by the director"))
    assert life.child("deploy")
    life.order(desired(3, 3))
    life.speak("verify", Verified())
    assert life.reported().deployment.deployment == "dep-3"  # type: ignore[union-attr]  # it has one


def test_older_desired_is_ignored(served: tuple[World, Life]) -> None:
    _, life = served
    life.order(desired(1, 2, deployment="replayed"))
    assert not life.running("deploy")
    assert not life.running("verify")


def test_release_that_runs_already_is_confirmed_without_work(served: tuple[World, Life]) -> None:
    _, life = served
    life.order(desired(2, 1))
    life.speak("verify", Verified())
    report = life.reported()
    assert report.deployment is not None
    assert (report.deployment.deployment, report.deployment.state) == ("dep-2", DeploymentState.COMMITTED)
    assert not life.running("deploy")


def test_going_back_to_the_old_release_in_probation(served: tuple[World, Life]) -> None:
    world, life = served
    deploy(world, life, 2, 2)
    life.order(desired(3, 1))
    life.speak("verify", Verified())
    assert life.accepting() == ["A"]
    old = life.worker("A")
    assert old is not None
    old.says(QUIET)
    report = life.reported()
    assert report.deployment is not None
    assert (report.deployment.deployment, report.deployment.state) == ("dep-3", DeploymentState.COMMITTED)
    assert report.quarantine == []


def test_verification_that_cannot_be_done_now_is_tried_again(served: tuple[World, Life]) -> None:
    _, life = served
    life.order(desired(2, 1))
    life.speak("verify", VerifyFailed(reason="the server is away"))
    keep_alive(life, 30)
    life.speak("verify", Verified())
    assert life.reported().deployment.deployment == "dep-2"  # type: ignore[union-attr]  # it has one


def test_quarantine_is_lifted_by_a_verified_order_only(served: tuple[World, Life]) -> None:
    world, life = served
    deploy(world, life, 2, 2)
    new = life.worker("B")
    assert new is not None
    new.ends("killed by SIGSEGV")
    life.settle()
    old = life.worker("A")
    assert old is not None
    old.says(QUIET)
    life.settle()
    life.order(desired(3, None, released=[artifact(2)]))
    assert len(life.reported().quarantine) == 1
    life.speak("verify", Verified())
    assert life.reported().quarantine == []


def test_boot_without_network_serves_the_committed_slot(served: tuple[World, Life]) -> None:
    world, _ = served
    life = world.boot()
    worker = life.worker("A")
    assert worker is not None
    worker.says(READY)
    life.settle()
    live = read_live(world.state_dir / "run")
    assert live is not None
    assert (live.accepting_slot, live.connected) == ("A", False)


def test_probation_goes_on_after_a_reboot_and_remembers_its_time(served: tuple[World, Life]) -> None:
    world, life = served
    life.order(desired(2, 2, probation_s=60))
    stage(world, life, 2)
    accept(life, "B")
    keep_alive(life, 35)
    life = world.boot()
    life.connect()
    worker = life.worker("B")
    assert worker is not None
    assert life.worker("A") is None
    worker.says(READY)
    keep_alive(life, 32)
    assert life.reported().deployment.state is DeploymentState.COMMITTED  # type: ignore[union-attr]  # it has one


def test_model_that_dies_after_a_reboot_in_probation_is_rolled_back_cold(served: tuple[World, Life]) -> None:
    world, life = served
    deploy(world, life, 2, 2)
    life = world.boot()
    life.connect()
    worker = life.worker("B")
    assert worker is not None
    worker.ends("killed by SIGSEGV")
    life.settle()
    old = life.worker("A")
    assert old is not None
    old.says(READY)
    report = life.reported()
    assert report.deployment is not None
    assert (report.deployment.state, life.accepting()) == (DeploymentState.ROLLED_BACK, ["A"])
    assert [entry.digest for entry in report.quarantine] == [artifact(2)]


def test_reboot_loop_in_probation_ends_in_rollback(served: tuple[World, Life]) -> None:
    world, life = served
    deploy(world, life, 2, 2)
    for _ in range(3):
        life = world.boot()
        assert life.accepting() == ["B"]
    life = world.boot()
    life.connect()
    assert life.accepting() == ["A"]
    assert "without progress" in life.reported().deployment.reason  # type: ignore[union-attr]  # it has one


def test_partner_refuses_to_deploy_and_says_why(tmp_path: Path) -> None:
    life = World(tmp_path, profile=Profile.PARTNER).boot()
    life.connect()
    life.order(desired(1, 1))
    life.speak("verify", Verified())
    report = life.reported()
    assert report.deployment is not None
    assert report.deployment.state is DeploymentState.REFUSED
    assert "partner" in report.deployment.reason


def test_lost_database_still_serves_the_proven_slot_and_keeps_the_quarantine(served: tuple[World, Life]) -> None:
    world, life = served
    deploy(world, life, 2, 2)
    new = life.worker("B")
    assert new is not None
    new.ends("killed by SIGSEGV")
    life.settle()
    life.database.close()
    (world.state_dir / "state.db").write_bytes(b"this is no database" * 100)
    for suffix in ("-wal", "-shm"):
        (world.state_dir / f"state.db{suffix}").unlink(missing_ok=True)
    life = world.boot()
    life.connect()
    assert life.accepting() == ["A"]
    assert [entry.digest for entry in life.reported().quarantine] == [artifact(2)]


def start_on_a_full_disk(world: World, life: Life) -> Life:
    life.database.close()
    life = world.start(full=True)
    assert isinstance(life.database, FullDatabase)
    life.database.is_full = True
    life.agent.boot()
    life.settle()
    life.connect()
    return life


def test_full_disk_does_not_stop_a_device_from_serving(served: tuple[World, Life]) -> None:
    world, life = served
    life = start_on_a_full_disk(world, life)
    accept(life, "A")
    assert life.reported().serving


def test_bad_model_goes_even_if_the_disk_is_full(served: tuple[World, Life]) -> None:
    world, life = served
    deploy(world, life, 2, 2)
    life = start_on_a_full_disk(world, life)
    new = life.worker("B")
    assert new is not None
    new.ends("killed by SIGSEGV")
    life.settle()
    accept(life, "A")
    report = life.reported()
    assert report.deployment is not None
    assert (report.deployment.state, life.accepting()) == (DeploymentState.ROLLED_BACK, ["A"])


def test_step_forward_waits_until_it_can_be_written(served: tuple[World, Life]) -> None:
    world, life = served
    life = start_on_a_full_disk(world, life)
    accept(life, "A")
    life.order(desired(2, 2))
    assert not life.running("deploy")
    assert isinstance(life.database, FullDatabase)
    life.database.is_full = False
    life.order(desired(2, 2))
    keep_alive(life, 31)
    assert life.child("deploy")


def test_probe_that_dies_is_tried_again_before_a_release_is_judged(world: World) -> None:
    life = world.boot()
    life.connect()
    life.order(desired(1, 1))
    assert not life.running("deploy")
    life.child("probe").ends("killed by SIGILL")
    life.settle()
    assert not life.running("deploy")
    life.advance(11)
    life.speak("probe", CAPABLE)
    job = life.child("deploy").job
    assert isinstance(job, DeployJob)
    assert job.capabilities.arch == "x86_64"


def _live_through(world: World, life: Life) -> None:
    """Generation 2 from order to the end of probation, in one life."""
    life.agent.boot()
    life.settle()
    life.connect()
    for slot in ("A", "B"):
        worker = life.worker(slot)
        if worker is not None:
            worker.says(READY)
    life.settle()
    life.order(desired(2, 2))
    for _ in range(8):
        if life.running("deploy"):
            life.speak("deploy", VariantChosen(variant="v", artifact=artifact(2), reason="r", manifest="m"))
            world.fill_slot("B", 2)
            life.speak("deploy", Staged(slot_dir="B", variant="v", artifact=artifact(2), manifest="m"))
        if life.running("check"):
            life.speak("check", CheckPassed(relative_error=0.0, latency_ms=1.0))
        worker = life.worker("B")
        if worker is not None:
            worker.says(READY)
        keep_alive(life, 3)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("cut_at", range(1, 16))
def test_power_cut_at_any_write_of_a_deployment_ends_in_the_new_model(served: tuple[World, Life], cut_at: int, after: bool) -> None:
    world, life = served
    life.database.close()
    fragile = world.start(cut_at=cut_at, after=after)
    with suppress(PowerCutError):
        _live_through(world, fragile)
    fragile.database.close()
    life = world.boot()
    assert len(life.accepting()) == 1, "old or new, never neither and never both"
    life.database.close()
    life = world.start()
    _live_through(world, life)
    report = life.reported()
    assert report.deployment is not None
    assert (report.deployment.state, report.active_slot) == (DeploymentState.COMMITTED, "B")


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("cut_at", range(1, 8))
def test_power_cut_at_any_write_of_a_rollback_ends_in_the_old_model(served: tuple[World, Life], cut_at: int, after: bool) -> None:
    world, life = served
    deploy(world, life, 2, 2)
    life.database.close()
    fragile = world.start(cut_at=cut_at, after=after)
    with suppress(PowerCutError):
        _die_in_probation(fragile)
    fragile.database.close()
    life = world.start()
    _die_in_probation(life)
    life.connect()
    report = life.reported()
    assert report.deployment is not None
    assert (report.deployment.state, report.active_slot, life.accepting()) == (DeploymentState.ROLLED_BACK, "A", ["A"])
    assert [entry.digest for entry in report.quarantine] == [artifact(2)]


def _die_in_probation(life: Life) -> None:
    life.agent.boot()
    life.settle()
    new = life.worker("B")
    if new is not None:
        new.ends("killed by SIGSEGV")
        life.settle()
    old = life.worker("A")
    assert old is not None
    old.says(READY)
    keep_alive(life, 2)
