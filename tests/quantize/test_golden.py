"""Golden inputs cover the classes and fit into a manifest."""

import numpy as np
import pytest

from covey_contract.release import unpack_floats
from covey_quantize.errors import DatasetError
from covey_quantize.golden import MAX_GOLDEN_BYTES, affordable_goldens, choose_goldens, is_decided, pack_golden


def test_every_class_is_there_before_any_comes_twice() -> None:
    classes = np.array([0] * 50 + [1] * 3 + [2])
    chosen = classes[choose_goldens(classes, 3, seed=0)]
    assert sorted(chosen) == [0, 1, 2]
    assert sorted(classes[choose_goldens(classes, 6, seed=0)]) == [0, 0, 0, 1, 1, 2]


def test_no_sample_is_chosen_twice_and_the_seed_decides() -> None:
    classes = np.arange(30) % 3
    chosen = choose_goldens(classes, 30, seed=0)
    assert sorted(chosen) == list(range(30))
    assert list(choose_goldens(classes, 5, seed=0)) == list(chosen[:5])
    assert list(choose_goldens(classes, 5, seed=1)) != list(chosen[:5])


def test_fewer_samples_than_goldens_are_all_taken() -> None:
    assert sorted(choose_goldens(np.array([4, 4]), 16, seed=0)) == [0, 1]


def test_large_inputs_mean_fewer_goldens_and_too_large_ones_an_error() -> None:
    outputs = np.zeros((4, 10), np.float32)
    assert affordable_goldens(np.zeros((4, 1, 28, 28), np.float32), outputs, 16) == 16
    assert affordable_goldens(np.zeros((4, 3, 96, 96), np.float32), outputs, 16) == 6
    with pytest.raises(DatasetError, match=f"a manifest has room for {MAX_GOLDEN_BYTES}"):
        affordable_goldens(np.zeros((1, 3, 512, 512), np.float32), outputs, 16)


def test_packed_goldens_come_back() -> None:
    x = np.random.default_rng(0).random((2, 3), dtype=np.float32)
    golden = pack_golden(x, x[:, :1])
    assert golden.input_shape == [2, 3]
    assert golden.output_shape == [2, 1]
    assert (np.frombuffer(unpack_floats(golden.inputs), "<f4").reshape(2, 3) == x).all()


def test_samples_with_a_clear_winner_come_first_in_their_class() -> None:
    outputs = np.array([[1.0, 0.9], [1.0, 0.1], [0.0, 1.0], [0.95, 1.0]], np.float32)
    decided = is_decided(outputs)
    assert list(decided) == [False, True, True, False]
    classes = np.array([0, 0, 1, 1])
    for seed in range(5):
        assert sorted(choose_goldens(classes, 2, seed=seed, decided=decided)) == [1, 2]
    assert sorted(choose_goldens(classes, 4, seed=0, decided=decided)) == [0, 1, 2, 3]


def test_outputs_without_classes_are_all_decided() -> None:
    assert is_decided(np.zeros((3, 1), np.float32)).all()
    assert is_decided(np.zeros((3, 2, 5), np.float32)).all()
