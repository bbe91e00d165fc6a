"""Loops that must end: starts without progress, actions that fail every time, a disk that takes nothing; in one life and across many."""

from contextlib import suppress
from pathlib import Path

import msgspec
import pytest
from tests.agent.daemon.test_deployments import CAPABLE, QUIET, READY, accept, deploy, keep_alive
from tests.fakes.agent.outside import FullDatabase, Life, PowerCutError, World, artifact, desired

from covey_agent.core.jobs import DeployFailed, FetchProgress, Staged, VariantChosen, Verified
from covey_agent.core.machine import MAX_BOOTS, MAX_STUMBLES, Action, Machine
from covey_agent.daemon.deployments import KEY_ORDER, STEADY_S
from covey_contract.messages import DeploymentState, Reading

LONG_S = 900.0


@pytest.fixture
def served(tmp_path: Path) -> tuple[World, Life]:
    """A device that serves release 1 from slot A."""
    world = World(tmp_path)
    life = world.boot()
    life.connect()
    deploy(world, life, 1, 1)
    keep_alive(life, 11)
    return world, life


def pass_time(life: Life, seconds: float, *, step_s: float = 1.0) -> None:
    """Time passes, and the workers load their models and give signs of life."""
    while seconds > 0:
        for worker in life.running("infer"):
            worker.says(READY, QUIET)
        life.advance(step_s, step_s=step_s)
        seconds -= step_s


def state(life: Life) -> DeploymentState:
    return life.agent._hub.deployments.machine.state


def break_action(life: Life, action: Action) -> list[int]:
    """Let an action fail from now on; the list grows with each try."""
    tries: list[int] = []

    def fail(_: Machine) -> None:
        tries.append(1)
        raise OSError("a test broke this")

    life.agent._hub.deployments._actions[action] = fail
    return tries


def verify_and_stage(world: World, life: Life) -> None:
    life.order(desired(2, 2))
    if life.running("probe"):
        life.speak("probe", CAPABLE)
    life.speak("deploy", VariantChosen(variant="onnx-int8", artifact=artifact(2), reason="smallest", manifest="m"))
    world.fill_slot("B", 2)
    life.speak("deploy", Staged(slot_dir="", variant="onnx-int8", artifact=artifact(2), manifest="m"))


def listen_to_alarms(life: Life) -> list[str]:
    """The list grows with each alarm."""
    alarms: list[str] = []
    raise_alarm = life.agent._hub.alarm_raised

    def note(what: str, detail: str) -> None:
        alarms.append(what)
        raise_alarm(what, detail)

    life.agent._hub.alarm_raised = note  # type: ignore[method-assign]  # the real one is called, too
    return alarms


def test_an_action_that_fails_every_time_is_tried_a_few_times_and_then_the_deployment_is_undone(served: tuple[World, Life]) -> None:
    world, life = served
    tries = break_action(life, Action.START_CHECK)
    verify_and_stage(world, life)
    pass_time(life, LONG_S)
    report = life.reported()
    assert report.deployment is not None
    assert (report.deployment.state, report.quarantine) == (DeploymentState.ROLLED_BACK, [])
    assert "a test broke this" in report.deployment.reason
    assert len(tries) == MAX_STUMBLES + 1
    assert life.accepting() == ["A"]


def test_failing_actions_are_counted_across_starts(served: tuple[World, Life]) -> None:
    world, life = served
    tries = break_action(life, Action.START_CHECK)
    verify_and_stage(world, life)
    starts = 0
    while state(life) is DeploymentState.VERIFYING:
        pass_time(life, 2.0)  # one more try in each life
        counted = len(tries)
        life = world.start()
        tries = break_action(life, Action.START_CHECK)
        life.agent.boot()
        life.settle()
        starts += 1
        assert counted >= 1
        assert starts <= MAX_BOOTS + 1
    pass_time(life, 1.0)
    assert state(life) is DeploymentState.ROLLED_BACK
    assert life.accepting() == ["A"]


def test_an_action_that_fails_once_costs_nothing_but_time(served: tuple[World, Life]) -> None:
    world, life = served
    actions = life.agent._hub.deployments._actions
    works = actions[Action.START_CHECK]
    break_action(life, Action.START_CHECK)
    verify_and_stage(world, life)
    actions[Action.START_CHECK] = works
    pass_time(life, 5.0)
    assert life.child("check")


def test_the_serving_model_is_started_again_and_again_if_that_fails(served: tuple[World, Life]) -> None:
    world, _ = served
    life = world.start()
    tries = break_action(life, Action.SERVE)
    works = life.agent._hub.deployments._serve
    life.agent.boot()
    pass_time(life, LONG_S)
    assert 10 <= len(tries) <= 40, "with growing pauses, for ever"
    life.agent._hub.deployments._actions[Action.SERVE] = works
    pass_time(life, 61.0)
    assert life.accepting() == ["A"]


def test_a_roll_back_that_cannot_be_carried_out_ends_too(served: tuple[World, Life]) -> None:
    world, life = served
    deploy(world, life, 2, 2)
    tries = break_action(life, Action.RESTORE_OLD)
    new = life.worker("B")
    assert new is not None
    new.ends("killed by SIGSEGV")
    pass_time(life, LONG_S)
    assert (state(life), life.accepting()) == (DeploymentState.ROLLED_BACK, ["A"])
    assert len(tries) <= MAX_STUMBLES + 1
    assert "SIGSEGV" in life.reported().deployment.reason, "the first reason stays"  # type: ignore[union-attr]  # it has one


def test_starts_in_mid_roll_back_are_bounded(served: tuple[World, Life]) -> None:
    world, life = served
    deploy(world, life, 2, 2)
    new = life.worker("B")
    assert new is not None
    new.ends("killed by SIGSEGV")
    life.settle()
    for _ in range(MAX_BOOTS + 1):
        assert state(life) is DeploymentState.ROLLING_BACK
        life = world.start()
        life.agent.boot()  # and dies before anything else happens
    life.settle()
    assert (state(life), life.accepting()) == (DeploymentState.ROLLED_BACK, ["A"])


def test_a_fetch_that_fails_for_ever_is_tried_ever_more_seldom_and_gives_way_to_a_newer_order(served: tuple[World, Life]) -> None:
    _, life = served
    life.order(desired(2, 2))
    begun = len(life.children.started)
    for _ in range(4000):
        if life.running("deploy"):
            life.speak("deploy", DeployFailed(reason="no answer"))
        pass_time(life, 5.0, step_s=5.0)
    tries = len(life.children.started) - begun
    assert 50 <= tries <= 160, "about every five minutes in the end"
    life.order(desired(3, 3))
    life.speak("verify", Verified())
    life.settle()
    assert life.agent._hub.deployments.machine.deployment.generation == 3  # type: ignore[union-attr]  # it has one


def power_cycles(world: World, life: Life, count: int, *, uptime_s: float) -> Life:
    for _ in range(count):
        life = world.boot()
        for _ in range(int(uptime_s / 10)):
            if life.running("deploy"):
                life.speak("deploy", DeployFailed(reason="no broker"))
            pass_time(life, 10.0, step_s=10.0)
    return life


def test_quick_starts_while_fetching_end_the_deployment_without_blaming_the_artifact(served: tuple[World, Life]) -> None:
    world, life = served
    life.order(desired(2, 2))
    life = power_cycles(world, life, MAX_BOOTS + 1, uptime_s=10.0)
    assert state(life) is DeploymentState.ROLLED_BACK
    assert life.agent._hub.deployments.machine.quarantine == ()


def test_a_device_that_is_switched_off_every_evening_goes_on_fetching(served: tuple[World, Life]) -> None:
    world, life = served
    life.order(desired(2, 2))
    life = power_cycles(world, life, 5 * MAX_BOOTS, uptime_s=STEADY_S + 20)
    assert state(life) is DeploymentState.FETCHING


def on_a_full_disk(world: World) -> tuple[Life, FullDatabase]:
    life = world.start(full=True)
    database = life.database
    assert isinstance(database, FullDatabase)
    return life, database


def test_a_full_disk_is_told_once_and_what_was_done_meanwhile_is_written_later(served: tuple[World, Life]) -> None:
    world, life = served
    deploy(world, life, 2, 2)
    life.database.close()
    life, database = on_a_full_disk(world)
    life.agent.boot()
    life.settle()
    accept(life, "B")
    alarms = listen_to_alarms(life)
    database.is_full = True
    new = life.worker("B")
    assert new is not None
    new.ends("killed by SIGSEGV")
    life.settle()
    pass_time(life, 300.0)
    assert (state(life), life.accepting()) == (DeploymentState.ROLLED_BACK, ["A"])
    assert alarms.count("storage") == 1
    database.is_full = False
    pass_time(life, 31.0)
    again = world.boot()
    assert (state(again), again.accepting()) == (DeploymentState.ROLLED_BACK, ["A"])


def test_a_step_that_waited_for_the_disk_is_dropped_if_it_is_no_longer_due(served: tuple[World, Life]) -> None:
    world, life = served
    life.database.close()
    life, database = on_a_full_disk(world)
    life.agent.boot()
    life.settle()
    life.connect()
    life.order(desired(2, 2))
    if life.running("probe"):
        life.speak("probe", CAPABLE)
    life.speak("deploy", VariantChosen(variant="onnx-int8", artifact=artifact(2), reason="smallest", manifest="m"))
    life.speak("deploy", FetchProgress(chunks_done=1, chunks_total=2, bytes_received=1))
    world.fill_slot("B", 2)
    alarms = listen_to_alarms(life)
    database.is_full = True
    life.speak("deploy", Staged(slot_dir="", variant="onnx-int8", artifact=artifact(2), manifest="m"))
    assert state(life) is DeploymentState.FETCHING
    life.order(desired(3, None))
    life.speak("verify", Verified())
    database.is_full = False
    pass_time(life, 60.0)
    assert (state(life), life.accepting()) == (DeploymentState.ROLLED_BACK, ["A"])
    assert alarms == ["storage", "storage_back"], "no bug is told"


def test_a_lost_order_does_not_leave_the_deployment_standing(served: tuple[World, Life]) -> None:
    world, life = served
    life.order(desired(2, 2))
    life.agent._kit.store.save({KEY_ORDER: None})
    life = world.boot()
    assert state(life) is DeploymentState.REFUSED


def test_a_second_copy_that_lags_behind_is_brought_up_to_date_at_the_start(served: tuple[World, Life]) -> None:
    """The last process died after the database and before `proven.json`; later the database is lost as well."""
    world, life = served
    (world.state_dir / "slots" / "proven.json").write_text('{"committed": "B"}')
    world.boot().database.close()
    life.database.close()
    for name in ("state.db", "state.db-wal", "state.db-shm"):
        (world.state_dir / name).unlink(missing_ok=True)
    assert world.boot().accepting() == ["A"]


@pytest.mark.parametrize("cut_at", range(1, 10))
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_the_end_of_a_deployment_is_told_exactly_once(served: tuple[World, Life], cut_at: int, after: bool) -> None:
    """The power goes at any write around the verdict. Nothing is acknowledged here, so everything that was told is on the disk."""
    world, life = served
    deploy(world, life, 2, 2)
    life.database.close()
    fragile = world.start(cut_at=cut_at, after=after)
    with suppress(PowerCutError):
        fragile.agent.boot()
        fragile.connect()
        pass_time(fragile, 15.0)
    fragile.database.close()
    life = world.boot()
    life.connect()
    pass_time(life, 15.0)
    rows = life.database.query("SELECT data FROM reading ORDER BY sequence")
    readings = [msgspec.msgpack.decode(data, type=Reading) for (data,) in rows if isinstance(data, bytes)]
    told = [reading.values["state"] for reading in readings if reading.values.get("deployment") == "dep-2"]
    assert told.count("committed") == 1, told
    assert state(life) is DeploymentState.COMMITTED
