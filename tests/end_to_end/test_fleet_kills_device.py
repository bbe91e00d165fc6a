"""kill -9 of an agent at every stage of a deployment: afterwards it is the old model or the new one, once, and nobody waited in vain."""

from collections import Counter

import pytest
from tests.end_to_end.live_fleet import Fleet
from tests.end_to_end.packed_models import BIG, SMALL

from covey_agent.client import Client
from covey_agent.core.machine import IN_FLIGHT
from covey_contract.messages import DeploymentState as State

pytestmark = [pytest.mark.end_to_end, pytest.mark.slow, pytest.mark.timeout(400)]
VICTIM = "device-1"
ORDER = [State.FETCHING, State.VERIFYING, State.STAGED, State.ACTIVATING, State.PROBATION, State.COMMITTED]
PATIENT = {State.FETCHING: (BIG, 1.0), State.PROBATION: (SMALL, 4.0)}  # state -> size of the model, seconds of probation


@pytest.mark.parametrize("state", [State.FETCHING, State.VERIFYING, State.ACTIVATING, State.PROBATION], ids=lambda state: state.value)
def test_agent_killed_in_mid_deployment_ends_with_one_model(fleet: Fleet, state: State) -> None:
    hidden, probation_s = PATIENT.get(state, (SMALL, 1.0))
    old = fleet.device(VICTIM)["serving_version"]
    asked = len(fleet.answers(VICTIM))
    release = fleet.publish(hidden=hidden)
    rollout = fleet.roll_out(release, VICTIM, probation_s=probation_s)
    deployment = fleet.wait("the device has its order", lambda: fleet.parts(rollout)[VICTIM]["deployment_id"])
    struck = strike(fleet, deployment, state)

    ended = fleet.wait_over(rollout)
    assert (ended["state"], struck) == ("completed", True), f"{ended['reason']}\n{fleet.explain()}"
    machine = fleet.machine(VICTIM)
    assert machine.deployment is not None
    assert (machine.state, machine.deployment.id) == (State.COMMITTED, deployment)
    assert machine.quarantine == ()
    device = fleet.device(VICTIM)
    assert device["serving_version"] == release["version"]
    assert device["reported"]["serving"] is True
    ends = [reading["values"] for reading in fleet.stage.call().get_all(f"/devices/{VICTIM}/readings", kind="deployment", limit=200)]
    assert Counter(value["state"] for value in ends if value["deployment"] == deployment)["committed"] <= 1
    answers = fleet.wait("the application asks on", lambda: later(fleet, asked, version=release["version"]))
    assert [answer for answer in answers if "error" in answer] == []
    assert {answer["version"] for answer in answers} <= {old, release["version"]}


def test_agent_boots_without_a_server_and_serves_the_committed_model(fleet: Fleet) -> None:
    version = fleet.device(VICTIM)["serving_version"]
    fleet.stage.troupe.stop("server", timeout_s=30)
    try:
        fleet.kill(VICTIM)
        fleet.start_agent(VICTIM)
        with Client(fleet.socket(VICTIM), timeout_s=60) as client:
            result = client.infer([[[0.0] * 28] * 28])
        assert result.version == version
        assert fleet.stage.agent_json(VICTIM, "status")["connected"] is False
    finally:
        fleet.start_server()
        fleet.wait_ready()
    fleet.wait("the device is back", lambda: fleet.stage.agent_json(VICTIM, "status")["connected"], timeout_s=120)
    fleet.wait("the server sees it", lambda: fleet.device(VICTIM)["presence"] == "online", timeout_s=120)


def strike(fleet: Fleet, deployment: str, state: State) -> bool:
    """Kill the agent as soon as the deployment is in `state` (or, if that was too short to be seen, past it); whether it was under way."""

    def reached() -> State | None:
        machine = fleet.machine(VICTIM)
        if machine.deployment is None or machine.deployment.id != deployment:
            return None
        if state is State.FETCHING and not 0 < machine.deployment.chunks_done < machine.deployment.chunks_total:
            return None if machine.state is State.FETCHING else machine.state
        return machine.state if ORDER.index(machine.state) >= ORDER.index(state) else None

    seen = fleet.wait(f"{state.value}", reached, poll_s=0.002)
    fleet.kill(VICTIM)
    fleet.start_agent(VICTIM)
    return seen in IN_FLIGHT


def later(fleet: Fleet, since: int, *, version: int) -> list[dict[str, object]]:
    """The answers since then, once one of them is of `version`."""
    answers = fleet.answers(VICTIM)[since:]
    return answers if any(answer.get("version") == version for answer in answers) else []
