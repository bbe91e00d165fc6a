"""Second half of the pipeline: measure every file that was made and decide which may be shipped."""

import math
from dataclasses import dataclass
from pathlib import Path

import msgspec

from covey_contract.codec import digest_of
from covey_contract.release import Runtime, TensorSpec
from covey_quantize import judge
from covey_quantize.backends import tflite
from covey_quantize.errors import ChildFailedError
from covey_quantize.measure import Limits, Measured, measure_latency, measure_outputs
from covey_quantize.onnxfile import min_runtime_version
from covey_quantize.plan import ONNX_FLOAT32, PlannedVariant
from covey_quantize.prepare import Reference
from covey_quantize.report import VariantReport

_NOTHING = TensorSpec(name="", dtype="", shape=[])


@dataclass(frozen=True, slots=True)
class Made:
    """A file on disk."""

    plan: PlannedVariant
    path: Path
    float_length: int  # of the float32 file for the same runtime


@dataclass(frozen=True, slots=True)
class Assessed:
    """A file, how it behaved, or why it could not be measured."""

    made: Made
    measured: Measured | None
    failure: str = ""


def measure(made: Made, inputs: Path, reference: Reference, *, limits: Limits) -> Assessed:
    """Run one file on the held-out samples; one that crashes or hangs is a finding, not an error."""
    if made.plan.name == ONNX_FLOAT32:
        return Assessed(made, reference.onnx)  # the very file that was run first
    together = [int(index) for index in reference.goldens]
    try:
        return Assessed(made, measure_outputs(made.path, made.plan.runtime, inputs, together=together, limits=limits))
    except ChildFailedError as exc:
        return Assessed(made, None, f"the runtime did not survive it: {exc.reason}")


def time_all(assessed: list[Assessed], inputs: Path, *, limits: Limits) -> tuple[list[Assessed], dict[str, float]]:
    """Median milliseconds by variant name; one that does not survive being run many times over counts as failed."""
    alive = [entry.made for entry in assessed if entry.measured is not None]
    try:
        return assessed, _timed(alive, inputs, limits)
    except ChildFailedError:
        latencies: dict[str, float] = {}  # somebody took the others along: each alone, to find out who
    outcomes = []
    for entry in assessed:
        outcome = entry
        if entry.measured is not None:
            try:
                latencies |= _timed([entry.made], inputs, limits)
            except ChildFailedError as exc:
                outcome = Assessed(entry.made, None, f"the runtime did not survive running it repeatedly: {exc.reason}")
        outcomes.append(outcome)
    return outcomes, latencies


def _timed(made: list[Made], inputs: Path, limits: Limits) -> dict[str, float]:
    if not made:
        return {}
    latencies = measure_latency([(entry.path, entry.plan.runtime) for entry in made], inputs, limits=limits)
    return {entry.plan.name: latency for entry, latency in zip(made, latencies, strict=True)}


def report_variant(entry: Assessed, reference: Reference, bounds: judge.Bounds, *, latency_ms: float | None) -> VariantReport:
    """The verdict about one file, with everything a release needs to know."""
    made, plan = entry.made, entry.made.plan
    data = made.path.read_bytes()
    report = VariantReport(
        name=plan.name,
        precision=plan.precision,
        recipe=plan.recipe.value,
        runtime=plan.runtime,
        min_runtime_version=_min_version(made),
        file="",
        sha256=digest_of(data),
        length=len(data),
        input=_NOTHING,
        output=_NOTHING,
        accuracy=None,
        accuracy_drop=None,
        relative_error=None,
        latency_ms=None if latency_ms is None else round(latency_ms, 4),
        memory=0,
        size_ratio=round(made.float_length / len(data), 3),
        golden_error=None,
        golden_tolerance=judge.GOLDEN_FLOOR[plan.precision],
        accepted=False,
        reason=entry.failure,
    )
    return report if entry.measured is None else _judged(report, entry.measured, made, reference, bounds)


def _judged(report: VariantReport, got: Measured, made: Made, reference: Reference, bounds: judge.Bounds) -> VariantReport:
    precision = made.plan.precision
    verdict = judge.judge(got.outputs, reference.outputs, reference.classes, precision=precision, bounds=bounds)
    reason = verdict.reason or judge.size_refusal(report.length, made.float_length, precision)
    golden_error = _golden_error(got, reference)
    return msgspec.structs.replace(
        report,
        file="" if reason else made.plan.file,
        input=got.input,
        output=got.output,
        accuracy=verdict.accuracy,
        accuracy_drop=verdict.accuracy_drop,
        relative_error=_finite(verdict.relative_error),
        memory=got.memory,
        golden_error=_finite(golden_error),
        golden_tolerance=judge.golden_tolerance(golden_error, precision),
        accepted=not reason,
        reason=reason,
    )


def _golden_error(got: Measured, reference: Reference) -> float:
    """The worse of running the goldens one by one and all at once: dynamic quantization takes its ranges over a whole batch."""
    expected = reference.outputs[reference.goldens]
    one_by_one = judge.relative_error(got.outputs[reference.goldens], expected)
    return max(one_by_one, judge.relative_error(got.together, expected)) if len(got.together) else one_by_one


def _finite(error: float) -> float | None:
    """JSON has no infinity."""
    return error if math.isfinite(error) else None


def _min_version(made: Made) -> str:
    return min_runtime_version(made.path) if made.plan.runtime is Runtime.ONNXRUNTIME else tflite.MIN_RUNTIME_VERSION
