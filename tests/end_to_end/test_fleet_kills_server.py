"""kill -9 of the server's programs while a rollout is under way: it goes on, and the devices' applications notice nothing."""

from dataclasses import dataclass
from typing import Any

import psutil
import pytest
from tests.end_to_end.live_fleet import OVER, Fleet
from tests.end_to_end.packed_models import BIG
from tests.end_to_end.processes import alive, family_of, wait_for

pytestmark = [pytest.mark.end_to_end, pytest.mark.slow, pytest.mark.timeout(400)]


def begin_rollout(fleet: Fleet) -> tuple[str, int]:
    """A rollout of a big model to all devices that is under way: its id, and the version that it ships."""
    release = fleet.publish(hidden=BIG)
    rollout = fleet.roll_out(release, *fleet.stage.devices)

    def fetching() -> bool:
        deployment = fleet.machine("device-1").deployment
        return deployment is not None and deployment.version == release["version"] and deployment.chunks_done > 0

    fleet.wait("chunks arrive", fetching, poll_s=0.01)
    return rollout, release["version"]


@pytest.mark.parametrize("word", ["worker", "api", "nats-server"])
def test_covey_up_restarts_a_killed_program_and_the_rollout_completes(fleet: Fleet, word: str) -> None:
    asked = {name: len(fleet.answers(name)) for name in fleet.stage.devices}
    rollout, version = begin_rollout(fleet)
    victim = fleet.server_child(word)
    assert fleet.stage.call().get(f"/rollouts/{rollout}")["state"] not in OVER, "it was over before anything was killed"
    victim.kill()

    ended = fleet.wait_over(rollout, timeout_s=180)
    assert ended["state"] == "completed", f"{ended['reason']}\n{fleet.explain()}"
    assert {fleet.device(name)["serving_version"] for name in fleet.stage.devices} == {version}
    assert fleet.server_child(word).pid != victim.pid
    answers = [answer for name in fleet.stage.devices for answer in fleet.answers(name)[asked[name] :]]
    assert answers
    assert [answer for answer in answers if "error" in answer] == []
    fleet.wait_ready()


@dataclass(frozen=True, slots=True)
class Fall:
    """What happened when `covey up` itself was killed in mid-rollout and started again on the same folder."""

    left_over: list[str]
    failed: list[dict[str, Any]]
    ended: dict[str, Any]
    served: set[int]
    version: int


@pytest.fixture(scope="module")
def fall(fleet: Fleet) -> Fall:
    asked = {name: len(fleet.answers(name)) for name in fleet.stage.devices}
    rollout, version = begin_rollout(fleet)
    family = family_of(fleet.stage.troupe.pid("server"))
    assert len(family) >= 4, family
    psutil.Process(fleet.stage.troupe.pid("server")).kill()
    left_over = wait_gone(family, timeout_s=20)
    fleet.stage.troupe.stop("server")
    fleet.start_server()
    fleet.wait_ready()
    ended = fleet.wait_over(rollout, timeout_s=180)
    failed = [answer for name in fleet.stage.devices for answer in fleet.answers(name)[asked[name] :] if "error" in answer]
    return Fall(left_over, failed, ended, {fleet.device(name)["serving_version"] for name in fleet.stage.devices}, version)


def test_killed_covey_up_leaves_no_orphan(fall: Fall) -> None:
    assert fall.left_over == []


def test_covey_up_on_the_same_folder_continues_the_rollout(fall: Fall, fleet: Fleet) -> None:
    assert fall.ended["state"] == "completed", f"{fall.ended['reason']}\n{fleet.explain()}"
    assert fall.served == {fall.version}


def test_applications_are_served_while_the_server_is_away(fall: Fall) -> None:
    assert fall.failed == []


def wait_gone(family: list[psutil.Process], *, timeout_s: float) -> list[str]:
    """What still lives after so long."""
    try:
        wait_for("the end of all", lambda: not alive(family), timeout_s=timeout_s)
    except AssertionError:
        return alive(family)
    return []
