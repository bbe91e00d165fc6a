"""Compare a variant's answers with the float model's: the last gate before a model may serve. Pure.

A variant passes if every answer is finite, the relative error over all of them, ||answers - golden|| / ||golden||, is within its
tolerance, and, where the outputs are one score a label, the highest score is the same one. That last rule forgives a sample on
which the float model itself was undecided: if its two best scores are nearer than the tolerance allows both to move, their order
says nothing.
"""

import binascii
import math

import numpy as np

from covey_agent.workers.errors import ModelError
from covey_agent.workers.runtimes.engine import Floats
from covey_contract.release import Golden, unpack_floats


def read_golden(golden: Golden) -> tuple[Floats, Floats]:
    """The inputs and the expected outputs. Raises ModelError if the numbers do not fill the shapes."""
    return _array(golden.inputs, golden.input_shape, "inputs"), _array(golden.outputs, golden.output_shape, "outputs")


def compare(answers: Floats, expected: Floats, *, labels: int, tolerance: float) -> float:
    """Return the relative error. Raises ModelError with the reason if the variant must not serve."""
    if answers.shape != expected.shape:
        raise ModelError(f"golden check: the outputs have shape {list(answers.shape)}, expected {list(expected.shape)}")
    if not np.isfinite(answers).all():
        raise ModelError(f"golden check: {int(np.sum(~np.isfinite(answers)))} of {answers.size} outputs are NaN or infinite")
    norm = float(np.linalg.norm(expected))
    error = float(np.linalg.norm(answers - expected)) / (norm or 1.0)
    if error > tolerance:
        raise ModelError(f"golden check: the outputs differ by a relative error of {error:.4g}, at most {tolerance:.4g} is allowed")
    if labels > 1 and expected.shape[1:] == (labels,):
        _compare_labels(answers, expected, tolerance=tolerance)
    return error


def _compare_labels(answers: Floats, expected: Floats, *, tolerance: float) -> None:
    top_two = np.sort(expected, axis=1)[:, -2:]
    undecided = top_two[:, 1] - top_two[:, 0] <= 2 * tolerance * np.abs(expected).max(axis=1)
    wrong = (answers.argmax(axis=1) != expected.argmax(axis=1)) & ~undecided
    if wrong.any():
        raise ModelError(f"golden check: {int(wrong.sum())} of {len(expected)} samples get another label than from the float model")


def _array(text: str, shape: list[int], what: str) -> Floats:
    try:
        data = unpack_floats(text)
    except binascii.Error as exc:
        raise ModelError(f"the golden {what} are not base64") from exc
    if not shape or min(shape) < 1 or math.prod(shape) * 4 != len(data):
        raise ModelError(f"the golden {what} have {len(data)} bytes, which do not fill float32{shape}")
    return np.frombuffer(data, dtype="<f4").reshape(shape).astype(np.float32)
