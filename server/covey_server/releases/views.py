"""What the API takes and shows of releases."""

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, Self

from pydantic import Field, StringConstraints

from covey_contract.ids import NAME_PATTERN
from covey_contract.limits import MAX_REASON_CHARS
from covey_contract.release import Bounds
from covey_server.api_deps import ApiInput, ApiView
from covey_server.releases.models import Release, ReleaseState, Variant
from covey_server.releases.requests import BuildOptions
from covey_server.releases.service import id_of

NameText = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
NoteText = Annotated[str, StringConstraints(max_length=MAX_REASON_CHARS)]


class BoundsInput(ApiInput):
    """What a device holds the release to during probation."""

    p95_latency_ms: float = Field(0.0, ge=0, description="0: no bound")
    max_error_rate: float = Field(0.05, ge=0, le=1, description="share of requests")
    max_constant_run: int = Field(50, ge=0, description="so many different inputs with the very same output: the model is dead")
    min_requests: int = Field(0, ge=0, description="fewer requests than this judge nothing but crashes")


class BuildOptionsInput(ApiInput):
    """How to build."""

    variants: list[NameText] = Field([], max_length=32, description="e.g. onnx-int8, tflite-int8; empty: what suits the model")
    tflite: bool = Field(True, description="false: ONNX only")
    max_accuracy_drop: float | None = Field(None, ge=0, le=1, description="what a variant may lose; null: the server's setting")
    bounds: BoundsInput = BoundsInput()
    custom: dict[str, str | int | float] = Field({}, max_length=64, description="your own values; they are signed with the release")

    def to_options(self) -> BuildOptions:
        """As the service takes it."""
        return BuildOptions(
            variants=list(self.variants),
            tflite=self.tflite,
            max_accuracy_drop=self.max_accuracy_drop,
            bounds=Bounds(**self.bounds.model_dump()),
            custom=dict(self.custom),
        )


class ReleaseFromRun(BuildOptionsInput):
    """A release of a run's newest weights."""

    run: str = Field(min_length=1, max_length=64, description="id of the run")
    calibration: str = Field("", max_length=1000, description="path of an npz on the server; empty: a part of the run's held-out data")
    held_out: str = Field("", max_length=1000, description="path of an npz on the server to measure with; empty: the run's")
    version: int | None = Field(None, ge=1, description="null: the next one")
    note: NoteText = ""


class UploadedModel(BuildOptionsInput):
    """What is said of an uploaded model: the `description` part of the form."""

    model: NameText = Field(description="name of the model")
    labels: list[Annotated[str, StringConstraints(max_length=64)]] = Field([], max_length=10_000, description="names of the classes")
    version: int | None = Field(None, ge=1, description="null: the next one")
    note: NoteText = ""


class Withdrawal(ApiInput):
    """Why a release is withdrawn."""

    reason: NoteText = ""


class VariantView(ApiView):
    """One artifact, in the release or refused."""

    name: str
    precision: str
    runtime: str
    min_runtime_version: str
    artifact: str = Field(description="sha256; empty: it is not in the release")
    length: int = Field(description="bytes")
    accepted: bool
    reason: str = Field(description="why refused, or how it was made")
    accuracy: float | None
    accuracy_drop: float | None
    relative_error: float | None
    latency_ms: float | None = Field(description="median on the server; compare variants, promise nothing")
    size_ratio: float | None = Field(description="float32 file of the same format / this one")


class ReleaseView(ApiView):
    """One model version."""

    id: int
    model: str
    version: int
    state: ReleaseState
    reason: str = Field(description="why it failed or was withdrawn")
    progress: str = Field(description="what the build is doing now")
    source: str = Field(description="run or import")
    run_id: str | None
    manifest_digest: str
    labels: list[str]
    lineage: dict[str, Any] = Field(description="where the weights come from, with epsilon per participant")
    note: str
    created_by: str
    created_at: datetime
    published_at: datetime | None
    variants: list[VariantView]

    @classmethod
    def of(cls, release: Release, variants: Sequence[Variant]) -> Self:
        """The view of a row and its variants."""
        fields = {name: getattr(release, name) for name in cls.model_fields if name not in {"id", "variants"}}
        return cls(id=id_of(release), variants=[VariantView.model_validate(variant) for variant in variants], **fields)
