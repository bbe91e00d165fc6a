"""The deployment state machine as steps of a path. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from covey_contract.messages import DeploymentState

_PATH = (
    DeploymentState.FETCHING,
    DeploymentState.VERIFYING,
    DeploymentState.STAGED,
    DeploymentState.ACTIVATING,
    DeploymentState.PROBATION,
    DeploymentState.COMMITTED,
)
_ENDINGS = {
    DeploymentState.ROLLING_BACK: "busy",
    DeploymentState.ROLLED_BACK: "bad",
    DeploymentState.REFUSED: "bad",
}


@dataclass(frozen=True, slots=True)
class Step:
    """One state and how the deployment stands to it."""

    name: str
    mark: str  # done, now, ahead; at an end: good, bad, busy
    at: datetime | None = None


def deployment_steps(state: DeploymentState, *, passed: Mapping[str, datetime]) -> tuple[Step, ...]:
    """The path of a deployment with its present place; an ending that is not success stands behind the path.

    `passed`: when the device told of each state, as far as its readings have arrived.
    """
    if state in _ENDINGS:
        path = [Step(step.value, "done" if step.value in passed else "ahead", passed.get(step.value)) for step in _PATH[:-1]]
        return (*path, Step(state.value, _ENDINGS[state], passed.get(state.value)))
    place = _PATH.index(state) if state in _PATH else -1
    marks = ["done" if i < place else "now" if i == place else "ahead" for i in range(len(_PATH))]
    if state is DeploymentState.COMMITTED:
        marks[-1] = "good"
    return tuple(Step(step.value, mark, passed.get(step.value)) for step, mark in zip(_PATH, marks, strict=True))
