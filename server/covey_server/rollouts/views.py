"""What the API takes and shows of rollouts."""

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Self

from pydantic import Field, StringConstraints

from covey_contract.ids import NAME_PATTERN
from covey_server.api_deps import ApiInput, ApiView
from covey_server.releases.models import Release
from covey_server.rollouts.acts import Counts
from covey_server.rollouts.models import Rollout, RolloutDeviceState, RolloutState
from covey_server.rollouts.phases import DEFAULT_PHASES

_WEEK_S = 7 * 86400


class PhaseInput(ApiInput):
    """One phase: one of devices, count and percent; the last phase also takes every device that is left."""

    name: Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
    max_failures: int = Field(0, ge=0, description="more failed or silent devices than this halt the rollout")
    devices: list[str] | None = Field(None, min_length=1, max_length=1000, description="ids")
    count: int | None = Field(None, ge=1, description="so many devices, chosen by a stable hash")
    percent: float | None = Field(None, gt=0, le=100, description="of all selected devices, rounded up")


class NewRollout(ApiInput):
    """A rollout to draft."""

    release: int = Field(ge=1, description="id of a published release")
    selector: dict[str, Any] = Field(
        description='{"devices": [ids]}, {"labels": {name: value}} or {"all": true}', examples=[{"labels": {"site": "lyon"}}]
    )
    phases: list[PhaseInput] = Field(
        default_factory=lambda: [PhaseInput.model_validate(dict(phase)) for phase in DEFAULT_PHASES],
        min_length=1,
        max_length=20,
        description="default: one canary, then the rest",
    )
    name: str = Field("", max_length=120, description="empty: the release's name")
    probation_s: float = Field(600.0, gt=0, le=_WEEK_S, description="seconds that a device watches the new model before it commits")
    deadline_s: float = Field(3600.0, gt=0, le=10 * _WEEK_S, description="seconds without progress after which a device counts as failed")
    revert_on_halt: bool = Field(True, description="when a rule halts the rollout, send every reached device back to what it served")
    start: bool = Field(False, description="start it at once")

    def phase_rows(self) -> list[dict[str, Any]]:
        """The phases as they are kept."""
        return [phase.model_dump(exclude_none=True) for phase in self.phases]


class QuarantineRelease(ApiInput):
    """What a device may try again."""

    digests: list[Annotated[str, StringConstraints(pattern="^[0-9a-f]{4,64}$")]] = Field(
        default_factory=list, max_length=256, description="digests or their beginnings; none: all that it has in quarantine"
    )


class QuarantineReleaseView(ApiView):
    """What the device was ordered to release."""

    digests: list[str]


class PhaseView(ApiView):
    """One phase and how far it is."""

    name: str
    max_failures: int
    devices: dict[RolloutDeviceState, int] = Field(description="how many of its devices are where")


class RolloutView(ApiView):
    """A rollout."""

    id: str
    name: str
    release: int
    model: str
    version: int
    state: RolloutState
    reason: str = Field(description="why it was halted or cancelled")
    current_phase: int
    phases: list[PhaseView]
    selector: dict[str, Any]
    probation_s: float
    deadline_s: float
    revert_on_halt: bool
    created_by: str
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None

    @classmethod
    def of(cls, rollout: Rollout, release: Release, counts: Counts) -> Self:
        """The view of a rollout, the release that it ships, and where its devices are."""
        own = {"release", "model", "version", "phases"}
        fields = {name: getattr(rollout, name) for name in cls.model_fields if name not in own}
        phases = [_phase(row, counts.get(number, {})) for number, row in enumerate(rollout.phases)]
        return cls(release=rollout.release_id, model=release.model, version=release.version, phases=phases, **fields)


class RolloutDeviceView(ApiView):
    """One device's part."""

    device_id: str
    phase: int
    state: RolloutDeviceState
    deployment_id: str
    deployment_state: str = Field(description="as the device reported it last")
    reason: str
    variant: str
    variant_reason: str = Field(description="why the device chose this variant")
    chunks_done: int
    chunks_total: int
    bytes_received: int
    rollback_ms: float | None = Field(description="from the evidence to the old model serving")
    previous_release_id: int | None = Field(description="what it served when its turn came")
    reverted_at: datetime | None = Field(description="when it reported to be back on that")
    sent_at: datetime | None
    heard_at: datetime | None
    finished_at: datetime | None


def _phase(row: Mapping[str, Any], counts: Mapping[RolloutDeviceState, int]) -> PhaseView:
    return PhaseView(name=row["name"], max_failures=row.get("max_failures", 0), devices=dict(counts))
