"""Golden inputs: few held-out samples that cover the classes, with the float model's outputs. Pure."""

import numpy as np
from numpy.typing import NDArray

from covey_contract.release import Golden, pack_floats
from covey_quantize.errors import DatasetError

DECIDED_MARGIN = 0.25  # several times what a good int8 variant moves two outputs towards each other
MAX_GOLDEN_BYTES = 1_000_000  # as base64 in the manifest, which holds chunk digests too and may have 2 MB


def choose_goldens(classes: NDArray[np.int64], count: int, *, seed: int, decided: NDArray[np.bool_] | None = None) -> NDArray[np.int64]:
    """Indexes of at most `count` samples, taken from the classes in turn so that each is there before any comes twice.

    Within a class, samples that are `decided` come first: a device compares the answered class too, and where two classes are
    about equal their order says nothing about the artifact.
    """
    order = np.random.default_rng(seed).permutation(len(classes))
    if decided is not None:
        order = np.concatenate([order[decided[order]], order[~decided[order]]])
    queues = [[int(i) for i in order if classes[i] == label] for label in np.unique(classes)]
    chosen: list[int] = []
    while len(chosen) < min(count, len(classes)):
        for queue in queues:
            if queue and len(chosen) < count:
                chosen.append(queue.pop(0))
    return np.array(chosen, dtype=np.int64)


def is_decided(outputs: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Which samples of outputs[n, ...] have a clear winner: ahead of the second by DECIDED_MARGIN of the largest output."""
    if outputs.ndim != 2 or outputs.shape[1] < 2:
        return np.ones(len(outputs), dtype=np.bool_)
    top_two = np.sort(outputs, axis=1)[:, -2:]
    ahead: NDArray[np.bool_] = top_two[:, 1] - top_two[:, 0] > DECIDED_MARGIN * np.abs(outputs).max(axis=1)
    return ahead


def affordable_goldens(x: NDArray[np.float32], outputs: NDArray[np.float32], count: int) -> int:
    """How many of `count` goldens fit into a manifest. Raises DatasetError if not even one does."""
    each = int(x[0].size + outputs[0].size) * 4 * 4 // 3  # float32, base64
    fits = min(count, MAX_GOLDEN_BYTES // each)
    if fits == 0:
        raise DatasetError(f"one golden input with its output takes {each} bytes, a manifest has room for {MAX_GOLDEN_BYTES}")
    return fits


def pack_golden(x: NDArray[np.float32], outputs: NDArray[np.float32]) -> Golden:
    """As it stands in the report and the release manifest."""
    return Golden(
        input_shape=list(x.shape),
        output_shape=list(outputs.shape),
        inputs=pack_floats(np.ascontiguousarray(x, dtype="<f4").tobytes()),
        outputs=pack_floats(np.ascontiguousarray(outputs, dtype="<f4").tobytes()),
    )
