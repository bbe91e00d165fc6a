"""Numbers and verdicts about one variant's outputs. Pure: arrays in, values out.

A variant is refused if its outputs are not finite, differ from the float model's beyond a bound, lose more accuracy than the
budget, or if a reduced file is not smaller than the float one.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

EXPORT_RELATIVE_ERROR = 1e-3  # a float32 export that differs more is a wrong export; good ones are at 1e-6
# A device's kernels sum in another order and saturate elsewhere than this machine's, so goldens get head-room over the error
# that was measured here, and a floor where that error is tiny. The ceiling still catches permuted classes: an error of about 1.4
# for centred outputs, and as little as 0.5 where all outputs share an offset.
GOLDEN_HEADROOM = 4.0
GOLDEN_FLOOR = {"float32": 1e-3, "float16": 1e-2, "int8": 5e-2}
GOLDEN_CEILING = 0.3


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a variant may lose."""

    max_accuracy_drop: float
    max_relative_error: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """Quality of one variant and, if it was refused, why."""

    accuracy: float
    accuracy_drop: float
    relative_error: float
    reason: str  # "": accepted


def relative_error(got: Floats, expected: Floats) -> float:
    """||got - expected|| / ||expected||; infinity if `got` is not finite. An all-zero `expected` counts as length 1."""
    if got.shape != expected.shape or not np.isfinite(got).all():
        return float("inf")
    length = float(np.linalg.norm(expected.astype(np.float64).ravel()))
    distance = float(np.linalg.norm((got.astype(np.float64) - expected).ravel()))
    return distance / (length or 1.0)


def share_right(outputs: Floats, classes: NDArray[np.int64]) -> float:
    """Share of samples whose largest output is the class; NaN never is."""
    return float((answers(outputs) == classes).mean())


def answers(outputs: Floats) -> NDArray[np.int64]:
    """The class with the largest output per sample, over axis 1; int64[n, ...]. A sample with NaN answers -1."""
    flat = outputs if outputs.ndim > 1 else outputs[:, None]
    best = np.argmax(np.nan_to_num(flat, nan=-np.inf), axis=1).astype(np.int64)
    return np.where(np.isnan(flat).any(axis=1), np.int64(-1), best)


def judge(outputs: Floats, reference: Floats, classes: NDArray[np.int64], *, precision: str, bounds: Bounds) -> Verdict:
    """Compare a variant's outputs with the float model's; `classes` are the truth, or the float model's answers."""
    accuracy = share_right(outputs, classes) if outputs.shape == reference.shape else 0.0
    drop = share_right(reference, classes) - accuracy
    error = relative_error(outputs, reference)
    return Verdict(accuracy, drop, error, _refusal(outputs, reference, drop=drop, error=error, precision=precision, bounds=bounds))


def golden_tolerance(golden_error: float, precision: str) -> float:
    """The relative error that a device allows on the golden inputs, from the error measured here."""
    return min(GOLDEN_CEILING, max(GOLDEN_FLOOR[precision], GOLDEN_HEADROOM * golden_error))


def size_refusal(length: int, float_length: int, precision: str) -> str:
    """Why a file of this length is pointless, or "": a reduced variant must be smaller than the float one."""
    if precision != "float32" and length >= float_length:
        return f"the file has {length} bytes, the float32 one {float_length}: nothing is gained"
    return ""


def _refusal(outputs: Floats, reference: Floats, *, drop: float, error: float, precision: str, bounds: Bounds) -> str:
    if outputs.shape != reference.shape:
        return f"outputs have shape {list(outputs.shape)}, the float model's {list(reference.shape)}"
    bad = int((~np.isfinite(outputs)).reshape(len(outputs), -1).any(axis=1).sum())
    if bad:
        return f"NaN or infinity in the outputs of {bad} of {len(outputs)} samples"
    bound = EXPORT_RELATIVE_ERROR if precision == "float32" else bounds.max_relative_error
    if error > bound:
        return f"relative error {error:.4g} is over the bound of {bound:g}"
    # 1 of 100 samples is exactly 0.01 on paper and a little more in floating point.
    if drop > bounds.max_accuracy_drop + 1e-9:
        return f"accuracy drops by {drop:.4f}, the budget is {bounds.max_accuracy_drop:g}"
    return ""
