"""What a model's outputs mean: labels, confidence, and whether the model still reacts to its input at all."""

import numpy as np
from numpy.typing import NDArray

from covey_agent.workers.runtimes.engine import Floats

_SUM_TOLERANCE = 0.02  # ten classes of int8 probabilities add up to 1 only so far


def classify(outputs: Floats, labels: list[str]) -> tuple[list[str], list[float]]:
    """The best label of each sample and the share of the total that it has; nothing if outputs are not one score a label.

    Scores that are probabilities are taken as they are; other scores are taken as logits.
    """
    if not labels or outputs.shape[1:] != (len(labels),):
        return [], []
    best = outputs.max(axis=1)
    sums = outputs.sum(axis=1, dtype=np.float64)
    if outputs.min() >= 0.0 and np.abs(sums - 1.0).max() <= _SUM_TOLERANCE:
        confidences = best
    else:
        # Softmax at its maximum, exp(0) / sum(exp(x - max)), in double precision because a difference may leave float32's range.
        distances = np.subtract(outputs, best[:, None], dtype=np.float64)
        confidences = 1.0 / np.exp(np.maximum(distances, -700.0)).sum(axis=1)
    return [labels[index] for index in outputs.argmax(axis=1).tolist()], confidences.tolist()


class ConstantRun:
    """How many different inputs in a row got the very same output. Not for several threads at once."""

    def __init__(self) -> None:
        self._input: bytes | None = None
        self._output: bytes | None = None
        self.length = 0

    def see(self, inputs: Floats, outputs: Floats) -> int:
        """Take in one batch in order; return the longest run within it."""
        flat = outputs.reshape(len(outputs), -1)
        same = np.empty(len(flat), dtype=bool)
        same[0] = flat[0].tobytes() == self._output
        same[1:] = (flat[1:] == flat[:-1]).all(axis=1)
        run = self._run_lengths(same, inputs) if same.any() else np.zeros(1, np.int64)  # a living model costs no look at its inputs
        self.length = int(run[-1])
        self._input, self._output = inputs[-1].tobytes(), flat[-1].tobytes()
        return int(run.max())

    def _run_lengths(self, same: NDArray[np.bool_], inputs: Floats) -> NDArray[np.int64]:
        """The length of the run at each sample: since the last sample with another output, how many inputs differed from the one before."""
        flat = inputs.reshape(len(inputs), -1)
        different = np.empty(len(flat), dtype=bool)
        different[0] = flat[0].tobytes() != self._input
        different[1:] = (flat[1:] != flat[:-1]).any(axis=1)
        counted = self.length + np.cumsum(same & different)
        return counted - np.maximum.accumulate(np.where(same, 0, counted))
