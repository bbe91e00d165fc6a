"""The release manifest: one model version as a set of variants that belong together, signed as a whole.

A manifest is the TUF target `releases/<model>/<version>.json`. It holds everything that a device needs in order to choose,
fetch, check and judge: per variant the artifact's digest and every chunk's digest, what the variant needs, how good it was
measured to be, and golden inputs with the outputs that the float model gives for them.
All tensors that a user sees are float32 in the model's own layout; a variant with integer inputs says how to quantize them.
"""

import base64
from enum import Enum
from typing import Annotated

from msgspec import Meta, Struct, field

from covey_contract import limits
from covey_contract.messages import Count, DigestField, Millis, NameField, Scalar


class Runtime(Enum):
    """The library that runs an artifact."""

    ONNXRUNTIME = "onnxruntime"
    LITERT = "litert"  # ai-edge-litert, the successor of tflite-runtime
    TFLITE_RUNTIME = "tflite_runtime"  # old devices only


class TensorSpec(Struct, frozen=True, forbid_unknown_fields=True):
    """One input or output as the runtime sees it."""

    name: str
    dtype: str  # "float32", "int8", "uint8"
    shape: list[int]  # -1: any batch size
    scale: float = 0.0  # real = (quantized - zero_point) * scale; 0 for float tensors
    zero_point: int = 0


class Needs(Struct, frozen=True, forbid_unknown_fields=True):
    """What a device must have to run a variant."""

    runtime: Runtime
    min_runtime_version: str
    memory: Count = 0  # bytes free for the worker
    arch: list[str] = field(default_factory=list)  # empty: any
    cpu_flags: list[str] = field(default_factory=list)


class Quality(Struct, frozen=True, forbid_unknown_fields=True):
    """What was measured on the server, against the float model, before the release was signed."""

    accuracy: float  # share of held-out samples classified correctly, 0..1
    accuracy_drop: float  # float model's accuracy minus this one's
    relative_error: float  # ||variant - float|| / ||float|| over held-out outputs
    latency_ms: float  # median, batch 1, one thread, on the server: compare variants, promise nothing
    samples: Count


class Variant(Struct, frozen=True, forbid_unknown_fields=True):
    """One artifact of a release."""

    name: NameField  # onnx-int8, tflite-int8, onnx-float32, ...
    precision: NameField  # int8, float16, float32
    needs: Needs
    artifact: DigestField
    length: Annotated[int, Meta(ge=1, le=limits.MAX_ARTIFACT_BYTES)]
    chunks: list[DigestField]  # of each CHUNK_BYTES of the artifact, in order
    input: TensorSpec
    output: TensorSpec
    golden_tolerance: Annotated[float, Meta(gt=0)]  # relative error allowed against the golden outputs
    quality: Quality | None = None  # None: imported without measurement


class Golden(Struct, frozen=True, forbid_unknown_fields=True):
    """Inputs with the float model's outputs: what a device checks before it lets a variant serve."""

    input_shape: list[int]  # [n, ...]
    output_shape: list[int]  # [n, ...]
    inputs: str  # base64 of little-endian float32
    outputs: str


class Bounds(Struct, frozen=True, forbid_unknown_fields=True):
    """What a device holds a serving variant to during probation."""

    p95_latency_ms: float = 0.0  # 0: no bound
    max_error_rate: float = 0.05  # of requests
    max_constant_run: Count = 50  # this many different inputs with the very same output: the model is dead
    min_requests: Count = 0  # fewer requests than this in probation judge nothing but crashes


class Lineage(Struct, frozen=True, forbid_unknown_fields=True):
    """Where the weights come from."""

    source: NameField  # "run" or "import"
    run: str = ""
    rounds: Count = 0
    participants: Count = 0
    epsilon: dict[str, float] = field(default_factory=dict)  # participant -> epsilon spent by the run
    delta: float = 0.0
    note: str = ""


class Release(Struct, frozen=True, tag="release", forbid_unknown_fields=True):
    """A model version as devices receive it."""

    model: NameField
    version: Annotated[int, Meta(ge=1)]
    created_at: Millis
    labels: list[str]
    variants: Annotated[list[Variant], Meta(min_length=1, max_length=limits.MAX_VARIANTS)]
    golden: Golden
    bounds: Bounds
    lineage: Lineage
    custom: dict[str, Scalar] = field(default_factory=dict)


def manifest_target(model: str, version: int) -> str:
    """The TUF target path of a release's manifest."""
    return f"releases/{model}/{version}.json"


def pack_floats(data: bytes) -> str:
    """Little-endian float32 bytes as they stand in a Golden."""
    return base64.b64encode(data).decode("ascii")


def unpack_floats(text: str) -> bytes:
    """The inverse of `pack_floats`."""
    return base64.b64decode(text, validate=True)
