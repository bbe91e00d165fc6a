"""Verdicts: what is refused, and what a device may tolerate."""

import numpy as np
import pytest
from numpy.typing import NDArray

from covey_quantize import judge

BOUNDS = judge.Bounds(max_accuracy_drop=0.01, max_relative_error=0.15)
CLASSES = np.arange(100) % 4
REFERENCE = np.eye(4, dtype=np.float32)[CLASSES] * 2 - 0.5


def _wrong_for(count: int) -> NDArray[np.float32]:
    """The reference with `count` samples answered barely wrong."""
    outputs = REFERENCE.copy()
    outputs[:count, :] = 0.5
    outputs[np.arange(count), (CLASSES[:count] + 1) % 4] = 0.51
    return outputs


def test_the_reference_itself_is_accepted() -> None:
    verdict = judge.judge(REFERENCE, REFERENCE, CLASSES, precision="float32", bounds=BOUNDS)
    assert verdict == judge.Verdict(accuracy=1.0, accuracy_drop=0.0, relative_error=0.0, reason="")


def test_exactly_the_budget_is_accepted_and_one_sample_more_refused() -> None:
    bounds = judge.Bounds(max_accuracy_drop=0.01, max_relative_error=1.0)
    assert judge.judge(_wrong_for(1), REFERENCE, CLASSES, precision="int8", bounds=bounds).reason == ""
    refused = judge.judge(_wrong_for(2), REFERENCE, CLASSES, precision="int8", bounds=bounds)
    assert refused.reason == "accuracy drops by 0.0200, the budget is 0.01"


def test_small_errors_are_refused_in_a_float_export_only() -> None:
    outputs = REFERENCE * np.float32(1.01)
    assert judge.judge(outputs, REFERENCE, CLASSES, precision="int8", bounds=BOUNDS).reason == ""
    assert "relative error" in judge.judge(outputs, REFERENCE, CLASSES, precision="float32", bounds=BOUNDS).reason


def test_clipped_outputs_are_refused_although_the_answers_are_right() -> None:
    verdict = judge.judge(np.clip(REFERENCE, -0.5, 0.6), REFERENCE, CLASSES, precision="int8", bounds=BOUNDS)
    assert verdict.accuracy == 1.0
    assert "relative error" in verdict.reason


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_one_output_that_is_not_a_number_refuses_the_variant(poison: float) -> None:
    outputs = REFERENCE.copy()
    outputs[7, 3] = poison
    reason = judge.judge(outputs, REFERENCE, CLASSES, precision="int8", bounds=BOUNDS).reason
    assert reason == "NaN or infinity in the outputs of 1 of 100 samples"


def test_outputs_of_another_shape_are_refused() -> None:
    verdict = judge.judge(REFERENCE[:, :3], REFERENCE, CLASSES, precision="int8", bounds=BOUNDS)
    assert verdict.reason == "outputs have shape [100, 3], the float model's [100, 4]"


def test_relative_error_is_the_ratio_of_lengths() -> None:
    assert judge.relative_error(np.array([3, 4.5], np.float32), np.array([3, 4], np.float32)) == pytest.approx(0.1)
    assert judge.relative_error(np.array([0.5], np.float32), np.array([0], np.float32)) == pytest.approx(0.5)


def test_nan_never_counts_as_right() -> None:
    outputs = np.array([[np.nan, 0.0], [0.0, 1.0]], np.float32)
    assert judge.share_right(outputs, np.array([0, 1])) == 0.5


@pytest.mark.parametrize(
    ("error", "precision", "expected"),
    [(1e-7, "float32", 1e-3), (1e-4, "float16", 1e-2), (0.001, "int8", 0.05), (0.04, "int8", 0.16), (0.2, "int8", 0.3)],
)
def test_a_golden_tolerance_has_a_floor_headroom_and_a_ceiling(error: float, precision: str, expected: float) -> None:
    assert judge.golden_tolerance(error, precision) == pytest.approx(expected)


def test_a_reduced_file_must_be_smaller() -> None:
    assert judge.size_refusal(99, 100, "int8") == ""
    assert judge.size_refusal(100, 100, "float32") == ""
    assert judge.size_refusal(100, 100, "int8") == "the file has 100 bytes, the float32 one 100: nothing is gained"
