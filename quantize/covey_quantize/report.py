"""What the pipeline found out: `report.json` in the output directory, and the worker's last line.

Everything but `seconds`, `latency_ms` and `memory` is the same for the same input.
"""

from enum import Enum

import msgspec
from msgspec import Struct, field

from covey_contract.release import Golden, Runtime, TensorSpec

SCHEMA_VERSION = 1
REPORT_FILE = "report.json"


class ModelKind(Enum):
    """What decides how a model is quantized."""

    CNN = "cnn"  # convolutions
    MLP = "mlp"  # matrix products with fixed weights only
    TRANSFORMER = "transformer"  # attention: products of two activations
    RECURRENT = "recurrent"  # GRU, LSTM, RNN or an explicit loop
    OTHER = "other"  # nothing with weights that a quantizer knows


class VariantReport(Struct, frozen=True):
    """One artifact, as measured against the float model on the held-out samples; None: it could not be measured.

    An accepted variant has been measured in everything but, rarely, latency.
    """

    name: str
    precision: str  # float32, float16, int8
    recipe: str  # how it was made, in words
    runtime: Runtime
    min_runtime_version: str
    file: str  # name in the output directory; "" when refused, so that nobody ships it by mistake
    sha256: str
    length: int  # bytes
    input: TensorSpec
    output: TensorSpec
    accuracy: float | None  # see QuantizeReport.accuracy_is
    accuracy_drop: float | None  # the float model's minus this one's
    relative_error: float | None  # ||variant - float|| / ||float||
    latency_ms: float | None  # median CPU time, batch 1, one thread, variants interleaved
    memory: int  # peak resident bytes of a process that runs nothing else
    size_ratio: float  # float32 file of the same runtime / this file
    golden_error: float | None  # relative error on the golden inputs, the worse of one by one and all at once
    golden_tolerance: float  # what a device allows
    accepted: bool
    reason: str = ""  # why it was refused


class Missing(Struct, frozen=True):
    """A variant that was wanted and could not be made."""

    name: str
    reason: str


class QuantizeReport(Struct, frozen=True):
    """The whole result of one request."""

    schema: int
    source: str  # "onnx", "pt2" or "factory"
    source_sha256: str  # of the model file and, if given, the weights
    kind: ModelKind
    kind_reason: str
    exporter: str  # "dynamo", "torchscript" or "none" (the source was ONNX)
    opset: int
    labels: list[str]
    accuracy_is: str  # "accuracy" against y, or "agreement" with the float model when there is no y
    float_accuracy: float
    calibration_samples: int
    held_out_samples: int
    variants: list[VariantReport]
    missing: list[Missing]
    golden: Golden
    notes: list[str] = field(default_factory=list)
    tools: dict[str, str] = field(default_factory=dict)  # package -> version
    seconds: dict[str, float] = field(default_factory=dict)  # wall time per step

    def accepted(self) -> list[VariantReport]:
        """The variants that may be shipped."""
        return [variant for variant in self.variants if variant.accepted]

    def is_within_budget(self) -> bool:
        """Whether at least one reduced variant was accepted, or, where none was tried, a float one."""
        reduced = [variant for variant in self.variants if variant.precision != "float32"]
        return any(variant.accepted for variant in reduced or self.variants)


def encode_report(report: QuantizeReport) -> bytes:
    """Indented JSON with a final newline."""
    return msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n"


def decode_report(data: bytes) -> QuantizeReport:
    """The inverse of `encode_report`."""
    return msgspec.json.decode(data, type=QuantizeReport)
