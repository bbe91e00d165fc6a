"""What a caller asks for and what it hears while it waits. Both cross process borders as one line of JSON."""

from collections.abc import Callable
from typing import Annotated

from msgspec import Meta, Struct, field

from covey_contract.limits import MAX_GOLDEN_INPUTS

GIB = 1024**3


class QuantizeRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One model to export, quantize, measure and package."""

    model: str  # path of an .onnx or .pt2 file, or "path.py:factory"
    calibration: str  # .npz with x float32[n, ...] and, if there are classes, y int64[n]
    out: str  # directory to make; an earlier result there is replaced in one step
    weights: str = ""  # .safetensors for a factory's module
    held_out: str = ""  # .npz for measuring; "": half of the calibration data is held out
    labels: list[str] = field(default_factory=list)  # one a class; empty: "0", "1", ...
    variants: list[str] = field(default_factory=list)  # empty: what suits the model's kind
    tflite: bool = True
    max_accuracy_drop: Annotated[float, Meta(ge=0, le=1)] = 0.01  # a variant that loses more is refused
    max_relative_error: Annotated[float, Meta(gt=0)] = 0.15  # of quantized outputs against the float model's
    goldens: Annotated[int, Meta(ge=1, le=MAX_GOLDEN_INPUTS)] = 16
    seed: Annotated[int, Meta(ge=0)] = 0  # which samples calibrate, measure and become golden
    max_calibration: Annotated[int, Meta(ge=1)] = 200  # samples; more costs time and gains nothing
    max_held_out: Annotated[int, Meta(ge=1)] = 1000  # samples
    tflite_timeout_s: Annotated[float, Meta(gt=0)] = 600.0
    tflite_memory: Annotated[int, Meta(gt=0)] = 6 * GIB  # resident bytes of the converting child
    measure_timeout_s: Annotated[float, Meta(gt=0)] = 300.0  # per variant
    measure_memory: Annotated[int, Meta(gt=0)] = 4 * GIB


class Progress(Struct, frozen=True, tag="progress"):
    """One step of the pipeline has begun."""

    step: str  # load, export, quantize, tflite, measure, package
    detail: str
    done: int  # steps finished so far
    total: int


Listener = Callable[[Progress], None]
