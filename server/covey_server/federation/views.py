"""What the API of tasks and runs takes and shows."""

import math
from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, Self

from pydantic import Field, StringConstraints

from covey_contract.ids import DEVICE_ID_PATTERN, NAME_PATTERN
from covey_contract.messages import PrivacyPlan
from covey_server.api_deps import ApiInput, ApiView
from covey_server.federation.models import Contribution, ContributionState, ParticipantState, Round, Run, RunParticipant, RunState, Task
from covey_server.federation.service import MAX_TASK_BYTES, RunSpec
from covey_server.privacy.rules import Assessment

NameText = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
DeviceText = Annotated[str, StringConstraints(pattern=DEVICE_ID_PATTERN)]


class NewTask(ApiInput):
    """One Python file; what it must define is in `docs/federation.md`."""

    name: NameText
    purpose: NameText = Field(description="what it is for; participants' policies may restrict purposes")
    dataset: NameText = Field(description="name of the dataset that participants use for it")
    labels: list[Annotated[str, StringConstraints(max_length=100)]] = Field(default=[], max_length=1000)
    code: str = Field(min_length=1, max_length=MAX_TASK_BYTES, description="the file's text")


class TaskView(ApiView):
    """One version of a task."""

    id: int
    name: str
    digest: str = Field(description="sha256 of the code; participants allow it by this")
    purpose: str
    dataset: str
    labels: list[str]
    created_by: str
    created_at: datetime

    @classmethod
    def of(cls, task: Task) -> Self:
        """From a row."""
        return cls.model_validate(task, from_attributes=True)


class PlanInput(ApiInput):
    """The mechanism of one round at one participant."""

    level: NameText = Field("record", description="record: DP-SGD at the participant; none: no guarantee")
    noise_multiplier: float = Field(0.0, ge=0, le=1000, allow_inf_nan=False)
    clipping_norm: float = Field(1.0, ge=0, le=1e6, allow_inf_nan=False)
    sample_rate: float = Field(1.0, gt=0, le=1, description="of each record in each step (Poisson)")
    steps: int = Field(10, ge=1, le=10_000, description="per round")
    delta: float = Field(0.0, ge=0, lt=1, description="at most 1/n of every participant's n records")

    def to_plan(self) -> PrivacyPlan:
        """As the wire has it."""
        return PrivacyPlan(**self.model_dump())


class PlanRequest(ApiInput):
    """What to predict."""

    task: NameText
    rounds: int = Field(ge=1, le=10_000)
    plan: PlanInput
    participants: list[DeviceText] = Field(default=[], max_length=10_000, description="empty: every active device and partner")
    min_participants: int = Field(2, ge=1, description="contributions that a round needs to count")
    max_epsilon: float = Field(8.0, gt=0, le=1000, description="of any participant's dataset after the last round, earlier runs included")
    allow_unprotected: bool = Field(False, description="accept a plan without any guarantee")

    def spec(self) -> RunSpec:
        """As the service takes it."""
        return RunSpec(model=self.task, hyperparameters={}, held_out="", **self._common())

    def _common(self) -> dict[str, Any]:
        return {
            "task": self.task,
            "rounds": self.rounds,
            "plan": self.plan.to_plan(),
            "participants": tuple(self.participants),
            "min_participants": self.min_participants,
            "max_epsilon": self.max_epsilon,
            "allow_unprotected": self.allow_unprotected,
        }


class NewRun(PlanRequest):
    """A run to create."""

    model: NameText = Field(description="name of the model that releases of this run carry")
    hyperparameters: dict[NameText, int | float | str] = Field(default={}, max_length=32, description="learning_rate, momentum")
    held_out: str = Field("", max_length=1000, description="path on the server of an .npz with x and y, to measure accuracy with")
    start: bool = Field(True, description="invite the participants at once")

    def spec(self) -> RunSpec:
        """As the service takes it."""
        return RunSpec(model=self.model, hyperparameters=dict(self.hyperparameters), held_out=self.held_out, **self._common())


class NewReference(ApiInput):
    """Another training of the same model."""

    name: NameText = Field(description="for example without-privacy or central")
    accuracies: list[Annotated[float, Field(ge=0, le=1)]] = Field(min_length=1, max_length=10_000, description="one per round")


class ForecastView(ApiView):
    """What a run would cost one participant."""

    participant: str
    spent: float = Field(description="epsilon so far on this dataset")
    after_round: list[float] = Field(description="epsilon after round 1, 2, ...")


class AssessmentView(ApiView):
    """What the planner found."""

    possible: bool
    epsilon: float | None = Field(description="of this run alone, for a participant of every round; null: no guarantee")
    rounds_within_limit: int
    refusals: list[str] = Field(description="what speaks against it, and what to change")
    participants: list[ForecastView]

    @classmethod
    def of(cls, assessment: Assessment) -> Self:
        """From the planner's answer."""
        return cls(
            possible=not assessment.refusals,
            epsilon=assessment.epsilon if math.isfinite(assessment.epsilon) else None,
            rounds_within_limit=assessment.rounds_within_limit,
            refusals=list(assessment.refusals),
            participants=[
                ForecastView(participant=f.participant, spent=f.spent, after_round=list(f.after_round)) for f in assessment.forecasts
            ],
        )


class RunView(ApiView):
    """One run."""

    id: str
    task: str
    task_digest: str
    dataset: str
    model: str
    state: RunState
    reason: str
    rounds_total: int
    rounds_done: int
    plan: dict[str, Any]
    hyperparameters: dict[str, Any]
    predicted_epsilon: float | None = Field(description="of one participant of every round, as planned; null: no guarantee")
    min_participants: int
    checkpoint: str = Field(description="digest of the newest weights (safetensors)")
    references: dict[str, list[float]] = Field(description="other trainings' accuracy per round, by name")
    created_by: str
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None

    @classmethod
    def build(cls, run: Run, task: Task) -> Self:
        """From rows."""
        return cls(**_run_fields(run, task))


class ParticipantView(ApiView):
    """One participant's answer."""

    device_id: str
    state: ParticipantState
    reason: str
    invited_at: datetime
    replied_at: datetime | None


class RunDetail(RunView):
    """One run with its participants."""

    participants: list[ParticipantView]

    @classmethod
    def build(cls, run: Run, task: Task, participants: Sequence[RunParticipant] = ()) -> Self:
        """From rows."""
        views = [ParticipantView.model_validate(row, from_attributes=True) for row in participants]
        return cls(**_run_fields(run, task), participants=views)


class ContributionView(ApiView):
    """One participant in one round."""

    device_id: str
    state: ContributionState
    reason: str
    seconds: float | None
    at: datetime


class RoundView(ApiView):
    """One round."""

    number: int
    started_at: datetime
    finished_at: datetime | None
    sampled: int
    contributors: int
    accuracy: float | None
    loss: float | None
    checkpoint: str
    reason: str
    contributions: list[ContributionView]

    @classmethod
    def of_all(cls, rounds: Sequence[Round], contributions: Sequence[Contribution]) -> list[Self]:
        """From rows."""
        by_round: dict[int, list[ContributionView]] = {}
        for row in contributions:
            by_round.setdefault(row.round, []).append(ContributionView.model_validate(row, from_attributes=True))
        return [cls(**row.model_dump(exclude={"run_id"}), contributions=by_round.get(row.number, [])) for row in rounds]


def _run_fields(run: Run, task: Task) -> dict[str, Any]:
    shown = {name for name in RunView.model_fields if name in Run.model_fields}
    return {**run.model_dump(include=shown), "task": task.name, "task_digest": task.digest, "dataset": task.dataset}
