"""What is asked of the releases capability, as values: a build order, and a release whose artifacts exist already.

A build order is kept in its row as JSON and names every file by digest, so that a worker on another day finds the same input.
"""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct, field

from covey_contract import limits
from covey_contract.messages import Count, DigestField, NameField, Scalar
from covey_contract.release import Bounds, Golden, Lineage, Quality, Runtime, TensorSpec
from covey_server.errors import InvalidInputError

_FileName = Annotated[str, Meta(min_length=1, max_length=120, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
_Labels = Annotated[list[Annotated[str, Meta(max_length=64)]], Meta(max_length=10_000)]


class BuildOptions(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a release is built and what its devices are held to."""

    variants: Annotated[list[NameField], Meta(max_length=limits.MAX_VARIANTS)] = field(default_factory=list)  # empty: what suits the model
    tflite: bool = True
    max_accuracy_drop: Annotated[float, Meta(ge=0, le=1)] | None = None  # None: the server's setting
    bounds: Bounds = Bounds()
    custom: Annotated[dict[str, Scalar], Meta(max_length=64)] = field(default_factory=dict)


class BuildRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One model to quantize and measure. Files are digests in the blob store."""

    source: Literal["onnx", "pt2", "task"]
    model: DigestField  # the model file, or the task's Python file with build_model()
    calibration: DigestField  # npz with x and, if there are classes, y
    held_out: str = ""  # digest of an npz to measure with; empty: part of the calibration data
    weights: str = ""  # digest of the state dict in safetensors, for a task
    labels: _Labels = field(default_factory=list)
    options: BuildOptions = BuildOptions()
    lineage: Lineage


class ImportedVariant(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One ready-made artifact."""

    name: NameField
    precision: NameField
    runtime: Runtime
    min_runtime_version: Annotated[str, Meta(max_length=40)]
    file: _FileName  # of the artifact, beside the description or in the upload
    input: TensorSpec
    output: TensorSpec
    golden_tolerance: Annotated[float, Meta(gt=0)]
    memory: Count = 0
    quality: Quality | None = None  # None: not measured


class ImportSpec(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A release whose artifacts were made elsewhere: the content of `release.json`."""

    model: NameField
    variants: Annotated[list[ImportedVariant], Meta(min_length=1, max_length=limits.MAX_VARIANTS)]
    golden: Golden
    version: Annotated[int, Meta(ge=1)] | None = None  # None: the next one
    labels: _Labels = field(default_factory=list)
    bounds: Bounds = Bounds()
    note: Annotated[str, Meta(max_length=limits.MAX_REASON_CHARS)] = ""
    custom: Annotated[dict[str, Scalar], Meta(max_length=64)] = field(default_factory=dict)


def decode_import_spec(data: bytes) -> ImportSpec:
    """Parse a description. Raises InvalidInputError with the place of the fault."""
    if len(data) > limits.MAX_MANIFEST_BYTES:
        raise InvalidInputError(f"the description has {len(data)} bytes, at most {limits.MAX_MANIFEST_BYTES} are allowed")
    try:
        return msgspec.json.decode(data, type=ImportSpec)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise InvalidInputError(f"the description of the release is not valid: {exc}") from exc


def request_to_row(request: BuildRequest) -> dict[str, Any]:
    """As it stands in the database."""
    row: dict[str, Any] = msgspec.to_builtins(request)
    return row


def request_from_row(row: dict[str, Any]) -> BuildRequest:
    """The inverse of `request_to_row`."""
    return msgspec.convert(row, BuildRequest)
