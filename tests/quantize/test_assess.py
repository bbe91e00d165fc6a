"""Measuring: one file that dies costs only itself."""

from pathlib import Path

import numpy as np
import pytest

from covey_contract.release import Runtime, TensorSpec
from covey_quantize import assess, judge
from covey_quantize.errors import ChildFailedError
from covey_quantize.measure import Limits, Measured
from covey_quantize.plan import PlannedVariant, plan_variants
from covey_quantize.prepare import Reference
from covey_quantize.report import ModelKind

LIMITS = Limits(timeout_s=1, memory=1)
OUTPUTS = np.eye(4, dtype=np.float32)
SPEC = TensorSpec(name="x", dtype="float32", shape=[-1, 4])
MEASURED = Measured(OUTPUTS, OUTPUTS[:2], SPEC, SPEC, 5_000_000)
REFERENCE = Reference(OUTPUTS, MEASURED, np.arange(4), "accuracy", np.array([0, 1]), ["a", "b", "c", "d"], [])


def _assessed(folder: Path, *, length: int = 50) -> list[assess.Assessed]:
    plans: list[PlannedVariant] = plan_variants(ModelKind.CNN, ["tflite-float32", "tflite-int8"], tflite=True)[0]
    entries = []
    for plan in plans:
        path = folder / plan.file
        path.write_bytes(bytes(length))
        entries.append(assess.Assessed(assess.Made(plan, path, float_length=100), MEASURED))
    return entries


def test_a_file_that_dies_while_it_is_timed_is_refused_and_the_others_are_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def die_with_int8(files: list[tuple[Path, Runtime]], inputs: Path, *, limits: Limits) -> list[float]:
        if any("int8" in path.name for path, _ in files):
            raise ChildFailedError("timing", "crashed the process with SIGSEGV")
        return [2.5 for _ in files]

    monkeypatch.setattr(assess, "measure_latency", die_with_int8)
    outcomes, latencies = assess.time_all(_assessed(tmp_path), tmp_path / "x.npy", limits=LIMITS)
    assert latencies == {"tflite-float32": 2.5}
    report = assess.report_variant(outcomes[1], REFERENCE, judge.Bounds(0.01, 0.1), latency_ms=None)
    assert not report.accepted
    assert report.reason == "the runtime did not survive running it repeatedly: crashed the process with SIGSEGV"
    assert (report.file, report.accuracy, report.relative_error) == ("", None, None)


def test_a_good_file_is_accepted_with_its_numbers(tmp_path: Path) -> None:
    report = assess.report_variant(_assessed(tmp_path)[1], REFERENCE, judge.Bounds(0.01, 0.1), latency_ms=0.12345678)
    assert (report.accepted, report.file, report.size_ratio) == (True, "tflite-int8.tflite", 2.0)
    assert (report.accuracy, report.accuracy_drop, report.relative_error, report.latency_ms) == (1.0, 0.0, 0.0, 0.1235)
    assert (report.memory, report.golden_error, report.golden_tolerance) == (5_000_000, 0.0, 0.05)


def test_a_file_as_big_as_the_float_one_is_refused(tmp_path: Path) -> None:
    report = assess.report_variant(_assessed(tmp_path, length=100)[1], REFERENCE, judge.Bounds(0.01, 0.1), latency_ms=1.0)
    assert report.reason == "the file has 100 bytes, the float32 one 100: nothing is gained"
    assert report.file == ""


def test_the_golden_error_is_the_worse_of_one_by_one_and_all_at_once(tmp_path: Path) -> None:
    entry = _assessed(tmp_path)[1]
    together = Measured(OUTPUTS, OUTPUTS[:2] * np.float32(1.02), SPEC, SPEC, 1)
    report = assess.report_variant(assess.Assessed(entry.made, together), REFERENCE, judge.Bounds(0.01, 0.1), latency_ms=1.0)
    assert report.golden_error == pytest.approx(0.02, rel=1e-3)
    assert report.golden_tolerance == pytest.approx(0.08, rel=1e-3)
