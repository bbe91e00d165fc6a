"""The deployment state machine as steps."""

from datetime import UTC, datetime

import pytest

from covey_contract.messages import DeploymentState
from covey_server.console.pills import Tone, pill_of
from covey_server.console.queries.steps import deployment_steps
from covey_server.devices.models import DevicePresence
from covey_server.federation.models import RunState
from covey_server.releases.models import ReleaseState
from covey_server.rollouts.models import RolloutDeviceState, RolloutState

AT = datetime(2026, 11, 23, tzinfo=UTC)


def marks(state: DeploymentState, *passed: str) -> dict[str, str]:
    return {step.name: step.mark for step in deployment_steps(state, passed=dict.fromkeys(passed, AT))}


def test_steps_before_the_present_one_are_done() -> None:
    assert marks(DeploymentState.STAGED) == {
        "fetching": "done",
        "verifying": "done",
        "staged": "now",
        "activating": "ahead",
        "probation": "ahead",
        "committed": "ahead",
    }


def test_a_rollback_stands_at_the_end_instead_of_success() -> None:
    told = marks(DeploymentState.ROLLED_BACK, "fetching", "verifying")
    assert "committed" not in told
    assert (told["verifying"], told["staged"], told["rolled_back"]) == ("done", "ahead", "bad")


def test_success_is_the_last_step_only() -> None:
    told = marks(DeploymentState.COMMITTED)
    assert list(told.values()) == ["done"] * 5 + ["good"]


@pytest.mark.parametrize("state", DeploymentState)
def test_every_state_has_its_steps(state: DeploymentState) -> None:
    assert len(deployment_steps(state, passed={})) == 6


@pytest.mark.parametrize("state", [*DeploymentState, *DevicePresence, *RunState, *ReleaseState, *RolloutState, *RolloutDeviceState])
def test_every_state_has_an_icon_beside_its_colour(state: DeploymentState) -> None:
    pill = pill_of(state)
    assert pill.icon
    assert pill.text


@pytest.mark.parametrize("state", ["failed", "halted", "rolled_back", "refused", "revoked"])
def test_what_went_wrong_is_told_as_bad(state: str) -> None:
    assert pill_of(state).tone is Tone.BAD


def test_an_unknown_state_is_shown_quietly() -> None:
    assert pill_of("brand_new").tone is Tone.QUIET
