"""What outputs mean, what a window says, and when a model is constant."""

import math
from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray

from covey_agent.core.jobs import InferWindow
from covey_agent.core.latencies import count_latencies
from covey_agent.workers.answers import ConstantRun, classify
from covey_agent.workers.window import Window, percentile

LABELS = ["a", "b", "c"]


def floats(rows: list[list[float]]) -> NDArray[np.float32]:
    return np.array(rows, np.float32)


def test_probabilities_are_taken_as_they_are() -> None:
    labels, confidences = classify(floats([[0.1, 0.7, 0.2], [0.98, 0.0, 0.01]]), LABELS)
    assert labels == ["b", "a"]
    assert confidences == pytest.approx([0.7, 0.98])


def test_logits_become_probabilities() -> None:
    labels, confidences = classify(floats([[1.0, 2.0, -3.0]]), LABELS)
    assert labels == ["b"]
    assert confidences == pytest.approx([math.exp(2) / (math.exp(1) + math.exp(2) + math.exp(-3))])


def test_huge_logits_do_not_overflow() -> None:
    with np.errstate(all="raise"):
        assert classify(floats([[3e38, -3e38, 0.0]]), LABELS) == (["a"], [1.0])


@pytest.mark.parametrize("shape", [(2, 4), (2, 3, 1), (2,)])
def test_outputs_that_are_not_one_score_a_label_have_no_label(shape: tuple[int, ...]) -> None:
    assert classify(np.zeros(shape, np.float32), LABELS) == ([], [])
    assert classify(np.zeros((2, 3), np.float32), []) == ([], [])


# -- constant runs -----------------------------------------------------------------------------------------------------


def run_of(*batches: tuple[list[float], list[float]]) -> list[int]:
    constant = ConstantRun()
    return [constant.see(floats([[x] for x in inputs]), floats([[y] for y in outputs])) for inputs, outputs in batches]


def test_a_living_model_has_no_run() -> None:
    assert run_of(([1], [1]), ([2], [2]), ([3, 4], [3, 4])) == [0, 0, 0]


def test_different_inputs_with_one_output_count_across_requests() -> None:
    assert run_of(([1], [5]), ([2], [5]), ([3], [5])) == [0, 1, 2]


def test_the_same_input_again_proves_nothing() -> None:
    assert run_of(([1], [5]), ([1], [5]), ([1], [5])) == [0, 0, 0]


def test_another_output_ends_the_run() -> None:
    assert run_of(([1], [5]), ([2], [5]), ([3], [6]), ([4], [6])) == [0, 1, 0, 1]


def test_within_a_batch_the_longest_run_counts_and_its_end_carries_on() -> None:
    assert run_of(([1, 2, 3, 4], [5, 5, 5, 6]), ([5], [6])) == [2, 1]
    assert run_of(([1, 2, 3, 4], [6, 5, 5, 5]), ([5, 6], [5, 5])) == [2, 4]
    assert run_of(([1, 2, 3, 4, 5], [7, 7, 8, 8, 8])) == [2]
    assert run_of(([1, 1, 2, 2, 1], [7, 7, 7, 7, 7]), ([1, 2], [7, 7])) == [2, 3]


def test_runs_agree_with_counting_one_by_one() -> None:
    random = np.random.default_rng(5)
    inputs, outputs = random.integers(0, 3, 400), random.integers(0, 2, 400)
    expected, run = [], 0
    for index in range(400):
        same = index > 0 and outputs[index] == outputs[index - 1]
        run = run + int(inputs[index] != inputs[index - 1]) if same else 0
        expected.append(run)
    cuts = [0, *sorted(random.choice(np.arange(1, 400), 60, replace=False).tolist()), 400]
    constant = ConstantRun()
    for start, end in pairwise(cuts):
        batch = [array[start:end, None].astype(np.float32) for array in (inputs, outputs)]
        assert constant.see(batch[0], batch[1]) == max(expected[start:end])
        assert constant.length == expected[end - 1]


# -- windows -----------------------------------------------------------------------------------------------------------


def test_a_window_counts_and_starts_anew() -> None:
    window = Window()
    for index in range(100):
        window.answered(["a", "b"], [0.5, 1.0], inputs=2, latency_ms=float(index), constant_run=index % 7)
    window.failed()
    window.failed(nonfinite=True)
    window.rejected()
    window.labelled(correct=1, count=2)
    assert window.take() == InferWindow(
        requests=102, inputs=200, errors=2, rejected=1, p50_ms=50.0, p95_ms=95.0, mean_confidence=0.75, classes={"a": 100, "b": 100},
        nonfinite=1, constant_run=6, labelled=2, labelled_correct=1, latencies=count_latencies(float(index) for index in range(100)),
    )  # fmt: skip
    assert window.take() == InferWindow(requests=0, inputs=0, errors=0)
    assert window.total_requests == 102


@pytest.mark.parametrize(("numbers", "share", "expected"), [([], 0.5, 0.0), ([3.0], 0.95, 3.0), ([1.0, 2.0, 3.0, 4.0], 0.5, 3.0)])
def test_percentiles_of_few_numbers(numbers: list[float], share: float, expected: float) -> None:
    assert percentile(numbers, share) == expected
