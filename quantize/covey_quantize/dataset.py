"""Calibration and held-out data: .npz files, checked completely before anything expensive starts."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from covey_quantize.errors import DatasetError, translate

Floats = NDArray[np.float32]
_MIN_TO_SPLIT = 16  # fewer samples are used for both purposes rather than halved


@dataclass(frozen=True, slots=True)
class Samples:
    """Inputs and, if known, their classes."""

    x: Floats  # [n, ...]
    y: NDArray[np.int64] | None  # [n]

    def __len__(self) -> int:
        return len(self.x)

    def take(self, index: NDArray[np.int64]) -> "Samples":
        """The samples at `index`, in that order."""
        return Samples(np.ascontiguousarray(self.x[index]), None if self.y is None else self.y[index])


def load_samples(path: str, *, what: str) -> Samples:
    """Read and check one .npz. Raises DatasetError naming what was expected and what came."""
    arrays = _read(Path(path), what)
    if "x" not in arrays:
        raise DatasetError(f"{what} {path}: expected an array 'x', got {sorted(arrays) or 'no arrays'}")
    x = arrays["x"]
    if x.dtype != np.float32:
        raise DatasetError(f"{what} {path}: expected x as float32, got {x.dtype}")
    if x.ndim < 2:
        raise DatasetError(f"{what} {path}: expected x as [n, ...], got shape {list(x.shape)}")
    if x.size == 0:
        raise DatasetError(f"{what} {path}: expected at least one sample, got shape {list(x.shape)}")
    if not np.isfinite(x).all():
        bad = int((~np.isfinite(x)).reshape(len(x), -1).any(axis=1).sum())
        raise DatasetError(f"{what} {path}: expected finite x, got NaN or infinity in {bad} of {len(x)} samples")
    return Samples(np.ascontiguousarray(x), _checked_classes(arrays.get("y"), len(x), f"{what} {path}"))


def split(samples: Samples, *, seed: int) -> tuple[Samples, Samples, bool]:
    """(calibration, held-out, whether they are disjoint): halves in a seeded order, or twice the same if there are too few."""
    if len(samples) < _MIN_TO_SPLIT:
        return samples, samples, False
    order = np.random.default_rng(seed).permutation(len(samples))
    half = len(samples) // 2
    return samples.take(np.sort(order[:half])), samples.take(np.sort(order[half:])), True


def limit(samples: Samples, count: int, *, seed: int) -> Samples:
    """At most `count` samples, drawn without replacement in a seeded way, in their old order."""
    if len(samples) <= count:
        return samples
    return samples.take(np.sort(np.random.default_rng(seed).permutation(len(samples))[:count]))


def check_sample_shape(samples: Samples, expected: list[int], *, what: str) -> None:
    """Raise DatasetError unless a sample has the shape that the model takes; -1 in `expected` is any size."""
    got = list(samples.x.shape[1:])
    if len(got) != len(expected) or any(want not in {-1, have} for want, have in zip(expected, got, strict=True)):
        raise DatasetError(f"{what}: the model takes samples of shape {expected}, got {got}")


def _read(path: Path, what: str) -> dict[str, NDArray[Any]]:
    if not path.is_file():
        raise DatasetError(f"{what} {path}: no such file")
    # The file is opened here, because numpy forgets to close one that it cannot read.
    with translate(DatasetError, f"{what} {path}: expected an .npz archive of plain arrays"), path.open("rb") as file:
        loaded = np.load(file, allow_pickle=False)
        if not isinstance(loaded, np.lib.npyio.NpzFile):
            raise DatasetError(f"{what} {path}: expected an .npz archive with x and y, got a single array")
        with loaded:
            return {name: loaded[name] for name in loaded.files}


def _checked_classes(y: NDArray[Any] | None, count: int, where: str) -> NDArray[np.int64] | None:
    if y is None:
        return None
    if y.dtype != np.int64 or y.shape != (count,):
        raise DatasetError(f"{where}: expected y as int64[{count}], got {y.dtype}{list(y.shape)}")
    if y.min() < 0:
        raise DatasetError(f"{where}: expected classes from 0, got {int(y.min())}")
    return y.astype(np.int64, copy=False)
