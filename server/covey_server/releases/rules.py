"""The quality gate: which variants may be part of a release, and whether there is a release at all. Pure."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from covey_contract import limits
from covey_contract.release import Golden, Quality, Runtime, TensorSpec, unpack_floats

# 1 of 100 samples is 0.01 on paper and a little more in floating point.
_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class Candidate:
    """One variant before and, with its verdict, after the gate."""

    name: str
    precision: str
    runtime: Runtime
    min_runtime_version: str
    artifact: str  # digest; empty: it could not be made
    length: int
    input: TensorSpec | None
    output: TensorSpec | None
    golden_tolerance: float
    quality: Quality | None  # None: not measured
    memory: int = 0
    size_ratio: float | None = None
    accepted: bool = True
    reason: str = ""


def judge_variant(variant: Candidate, *, max_accuracy_drop: float) -> Candidate:
    """The same variant with its verdict. One that was refused before stays refused: the gate never widens."""
    reason = _refusal(variant, max_accuracy_drop)
    if not reason:
        return variant
    return replace(variant, accepted=False, reason=reason[: limits.MAX_REASON_CHARS])


def judge_release(variants: Iterable[Candidate]) -> str:
    """Why there is nothing to publish, or "" if there is."""
    judged = list(variants)
    accepted = [variant for variant in judged if variant.accepted]
    if len(accepted) > limits.MAX_VARIANTS:
        return f"{len(accepted)} variants were accepted, a release may hold {limits.MAX_VARIANTS}"
    if accepted:
        return ""
    if not judged:
        return "no variant was made"
    reasons = "; ".join(f"{variant.name}: {variant.reason}" for variant in judged)
    return f"no variant is within its budget ({reasons})"[: limits.MAX_REASON_CHARS]


def check_golden(golden: Golden) -> str:
    """What is wrong with golden inputs, or ""."""
    for what, shape, text in (("inputs", golden.input_shape, golden.inputs), ("outputs", golden.output_shape, golden.outputs)):
        if not shape or min(shape) < 1 or not 1 <= shape[0] <= limits.MAX_GOLDEN_INPUTS:
            return f"golden {what} must have a shape [1..{limits.MAX_GOLDEN_INPUTS}, ...], got {shape}"
        try:
            length = len(unpack_floats(text))
        except ValueError as exc:
            return f"golden {what} are not base64: {exc}"
        if length != math.prod(shape) * 4:
            return f"golden {what} of shape {shape} need {math.prod(shape) * 4} bytes of float32, got {length}"
    if golden.input_shape[0] != golden.output_shape[0]:
        return f"there are {golden.input_shape[0]} golden inputs and {golden.output_shape[0]} outputs"
    return ""


def _refusal(variant: Candidate, max_accuracy_drop: float) -> str:
    if not variant.accepted or not variant.artifact or variant.input is None or variant.output is None:
        return variant.reason or "it could not be made"
    if not 1 <= variant.length <= limits.MAX_ARTIFACT_BYTES:
        return f"it has {variant.length} bytes, 1 to {limits.MAX_ARTIFACT_BYTES} are allowed"
    # Whether an unmeasured variant may come this far is the caller's to decide.
    return _quality_refusal(variant.quality, max_accuracy_drop) if variant.quality else ""


def _quality_refusal(quality: Quality, max_accuracy_drop: float) -> str:
    numbers = (quality.accuracy, quality.accuracy_drop, quality.relative_error)
    if not all(math.isfinite(number) for number in numbers):
        return f"its measurement is not a number: accuracy {numbers[0]}, drop {numbers[1]}, relative error {numbers[2]}"
    if quality.accuracy_drop > max_accuracy_drop + _ROUNDING:
        return f"accuracy drops by {quality.accuracy_drop:.4f}, the budget is {max_accuracy_drop:g}"
    return ""
