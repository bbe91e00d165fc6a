"""Data files are checked completely, and each fault is told with what was expected and what came."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from covey_quantize.dataset import Samples, check_sample_shape, limit, load_samples, split
from covey_quantize.errors import DatasetError

X = np.arange(12, dtype=np.float32).reshape(6, 2)
Y = np.array([0, 1, 2, 0, 1, 2], dtype=np.int64)


def _with_nan() -> Any:
    x = X.copy()
    x[2, 1] = np.nan
    return x


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"z": X}, r"expected an array 'x', got \['z'\]"),
        ({}, "expected an array 'x', got no arrays"),
        ({"x": X.astype(np.float64)}, "expected x as float32, got float64"),
        ({"x": X[:, 0]}, r"expected x as \[n, ...\], got shape \[6\]"),
        ({"x": X[:0]}, r"at least one sample, got shape \[0, 2\]"),
        ({"x": _with_nan()}, "NaN or infinity in 1 of 6 samples"),
        ({"x": X, "y": Y[:5]}, r"expected y as int64\[6\], got int64\[5\]"),
        ({"x": X, "y": Y.astype(np.float32)}, r"got float32\[6\]"),
        ({"x": X, "y": Y - 1}, "expected classes from 0, got -1"),
        ({"x": np.array([{"a": 1}], dtype=object)}, "expected an .npz archive of plain arrays"),
    ],
)
def test_bad_arrays_are_refused(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    np.savez(tmp_path / "data.npz", **arrays)
    with pytest.raises(DatasetError, match=message):
        load_samples(str(tmp_path / "data.npz"), what="calibration data")


@pytest.mark.parametrize("content", [b"", b"not numpy's", b"PK\x03\x04 cut"])
def test_a_file_that_is_no_archive_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "data.npz").write_bytes(content)
    with pytest.raises(DatasetError, match=r"expected an \.npz archive"):
        load_samples(str(tmp_path / "data.npz"), what="calibration data")


@pytest.mark.parametrize("compressed", [False, True])
def test_a_damaged_archive_is_refused(tmp_path: Path, *, compressed: bool) -> None:
    path = tmp_path / "data.npz"
    (np.savez_compressed if compressed else np.savez)(path, x=np.random.default_rng(0).random((50, 40), dtype=np.float32))
    damaged = bytearray(path.read_bytes())
    damaged[1000:1100] = bytes(100)
    path.write_bytes(damaged)
    with pytest.raises(DatasetError, match=r"expected an \.npz archive"):
        load_samples(str(path), what="calibration data")


def test_a_single_array_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "data.npy", X)
    with pytest.raises(DatasetError, match="got a single array"):
        load_samples(str(tmp_path / "data.npy"), what="held-out data")


def test_a_missing_file_is_refused() -> None:
    with pytest.raises(DatasetError, match=r"held-out data nowhere\.npz: no such file"):
        load_samples("nowhere.npz", what="held-out data")


def test_whole_data_come_back_as_they_are(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x=X, y=Y)
    samples = load_samples(str(tmp_path / "data.npz"), what="calibration data")
    assert samples.y is not None
    assert (samples.x == X).all()
    assert (samples.y == Y).all()


def test_a_split_shares_no_sample() -> None:
    samples = Samples(np.arange(40, dtype=np.float32).reshape(40, 1), None)
    first, second, disjoint = split(samples, seed=3)
    assert disjoint
    assert sorted([*first.x.ravel(), *second.x.ravel()]) == list(range(40))


def test_few_samples_are_used_twice_and_that_is_told() -> None:
    samples = Samples(X, Y)
    first, second, disjoint = split(samples, seed=3)
    assert not disjoint
    assert len(first) == len(second) == 6


def test_a_limit_draws_the_same_samples_for_the_same_seed() -> None:
    samples = Samples(np.arange(40, dtype=np.float32).reshape(40, 1), None)
    assert (limit(samples, 5, seed=1).x == limit(samples, 5, seed=1).x).all()
    assert not np.array_equal(limit(samples, 5, seed=1).x, limit(samples, 5, seed=2).x)
    assert len(limit(samples, 100, seed=1)) == 40


@pytest.mark.parametrize(("expected", "fits"), [([2], True), ([-1], True), ([3], False), ([1, 2], False)])
def test_samples_must_have_the_model_s_shape(expected: list[int], *, fits: bool) -> None:
    if fits:
        check_sample_shape(Samples(X, None), expected, what="calibration data")
    else:
        with pytest.raises(DatasetError, match="the model takes samples of shape"):
            check_sample_shape(Samples(X, None), expected, what="calibration data")
