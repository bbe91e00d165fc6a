"""The health hook in the daemon: when its failing is evidence, and when it is not."""

from pathlib import Path

import pytest
from tests.agent.daemon.test_deployments import deploy, keep_alive
from tests.fakes.agent.outside import Life, World, artifact

from covey_agent.core.jobs import Accepting, HookEnded, HookJob
from covey_agent.settings import HealthSettings, Settings
from covey_contract.messages import DeploymentState as S

GOOD = HookEnded(healthy=True)
BAD = HookEnded(healthy=False, reason="the health hook ended with exit code 1: dark")


@pytest.fixture
def served(tmp_path: Path) -> tuple[World, Life]:
    """A device with a hook that holds, serving release 1."""
    world = World(tmp_path, settings=Settings(health=HealthSettings(command="/opt/check --fast", interval_s=5.0)))
    life = world.boot()
    answer(life, GOOD)
    life.connect()
    deploy(world, life, 1, 1)
    answer(life, GOOD)
    for _ in range(12):
        keep_alive(life, 1)
        answer(life, GOOD)
    return world, life


def answer(life: Life, ended: HookEnded) -> None:
    """The running hook, if there is one, ends."""
    for child in life.running("hook"):
        child.says(ended)
        child.ends(clean=True)
    life.settle()


def state(life: Life) -> S:
    """Of the deployment, on the device itself."""
    return life.agent._hub.deployments.machine.state


def test_a_hook_that_held_before_and_fails_with_the_new_model_sends_it_back(served: tuple[World, Life]) -> None:
    world, life = served
    assert state(life) is S.COMMITTED
    deploy(world, life, 2, 2)
    answer(life, BAD)
    assert state(life) is S.PROBATION, "once is chance"
    life.advance(5)
    answer(life, BAD)
    assert state(life) is S.ROLLING_BACK
    old = life.worker("A")
    assert old is not None
    old.says(Accepting())
    report = life.reported()
    assert report.deployment is not None
    assert "dark" in report.deployment.reason
    assert [entry.digest for entry in report.quarantine] == [artifact(2)]


def test_a_hook_that_was_failing_before_says_nothing_about_the_new_model(served: tuple[World, Life]) -> None:
    world, life = served
    life.advance(5)
    answer(life, BAD)
    deploy(world, life, 2, 2)
    for _ in range(12):
        answer(life, BAD)
        keep_alive(life, 1)
    assert state(life) is S.COMMITTED


def test_the_hook_is_told_what_serves_and_asked_by_its_words(served: tuple[World, Life]) -> None:
    _, life = served
    life.advance(5)
    job = life.child("hook").job
    assert isinstance(job, HookJob)
    assert job.command == ["/opt/check", "--fast"]
    told = {key: job.environment[key] for key in ("COVEY_DEVICE", "COVEY_MODEL", "COVEY_VERSION", "COVEY_SLOT")}
    assert told == {"COVEY_DEVICE": "cam-1", "COVEY_MODEL": "digits", "COVEY_VERSION": "1", "COVEY_SLOT": "A"}


def test_outside_of_probation_a_failing_hook_is_an_alarm_once(served: tuple[World, Life]) -> None:
    _, life = served
    life.batches()
    for _ in range(4):
        life.advance(5)
        answer(life, BAD)
    life.advance(5)
    answer(life, GOOD)
    assert state(life) is S.COMMITTED
    alarms = [entry for entry in life.agent._hub.readings._fresh if b"health" in entry.data]
    stored = life.database.query("SELECT data FROM reading")
    told = [data for (data,) in stored if isinstance(data, bytes) and b"health" in data] + [entry.data for entry in alarms]
    assert len(told) == 2, "that it fails, and that it holds again"


def test_an_answer_that_was_asked_for_under_the_old_model_does_not_count(served: tuple[World, Life]) -> None:
    world, life = served
    life.advance(5)
    asked_before = life.child("hook")
    deploy(world, life, 2, 2)
    asked_before.says(BAD)
    asked_before.ends(clean=True)
    life.settle()
    assert life.running("hook"), "it is asked again, about the new model"
    answer(life, GOOD)
    life.advance(5)
    answer(life, BAD)
    assert state(life) is S.PROBATION
