"""What an application may send, and what it is told when it sends something else."""

import math
from collections.abc import Callable

import numpy as np
import pytest

from covey_agent.workers.errors import ModelError
from covey_agent.workers.golden import compare, read_golden
from covey_agent.workers.hardware import parse_cpu_flags, parse_memory_total
from covey_agent.workers.http import HttpProblemError
from covey_agent.workers.runtimes.engine import Tensor, VariantModel, dequantize, quantize
from covey_agent.workers.tensors import is_finite, read_json, read_raw
from covey_contract.release import Golden, TensorSpec, pack_floats

SAMPLE = (2, 3)
ONE = np.arange(6, dtype=np.float32).reshape(SAMPLE)


@pytest.mark.parametrize(
    ("body", "count", "single"),
    [
        (b'{"inputs": [[0,1,2],[3,4,5]]}', 1, True),
        (b'{"inputs": [[[0,1,2],[3,4,5.0]]]}', 1, False),
        (b'{"inputs": [[[0,1,2],[3,4,5]],[[0,1,2],[3,4,5]]]}', 2, False),
    ],
)
def test_json_is_one_sample_or_a_batch(body: bytes, count: int, single: bool) -> None:
    batch, was_single = read_json(bytearray(body), SAMPLE)
    assert was_single is single
    np.testing.assert_array_equal(batch, np.stack([ONE] * count))


def test_raw_is_little_endian_float32() -> None:
    batch, single = read_raw(bytearray(ONE.astype("<f4").tobytes()), "2, 3", SAMPLE)
    assert single
    np.testing.assert_array_equal(batch, ONE[None])


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"nonsense", 400),
        (b"[1, 2]", 400),
        (b'{"input": [1]}', 400),
        (b'{"inputs": [1], "x": 1}', 400),
        (b'{"inputs": 5}', 400),
        (b'{"inputs": [NaN]}', 400),
        (b'{"inputs": ' + b"[" * 10_000 + b"]" * 10_000 + b"}", 400),
        (b'{"inputs": []}', 422),
        (b'{"inputs": [[0,1,2],[3,4]]}', 422),
        (b'{"inputs": [[0,1,2],[3,4,"5"]]}', 422),
        (b'{"inputs": [[0,1,2],[3,4,null]]}', 422),
        (b'{"inputs": [[0,1,2],[3,4,{}]]}', 422),
        (b'{"inputs": [[0,1,2],[3,4,1e40]]}', 422),
        (b'{"inputs": [0,1,2,3,4,5]}', 422),
        (b'{"inputs": [[0,1],[2,3],[4,5]]}', 422),
        (b'{"inputs": [[[[0,1,2],[3,4,5]]]]}', 422),
    ],
)
def test_json_that_does_not_fit_is_refused(body: bytes, status: int) -> None:
    with pytest.raises(HttpProblemError) as caught:
        read_json(bytearray(body), SAMPLE)
    assert caught.value.status == status
    if status == 422:
        assert caught.value.extra["expected"] == {"shape": [-1, 2, 3], "dtype": "float32"}


def test_a_wrong_shape_says_what_was_expected_and_what_came() -> None:
    with pytest.raises(HttpProblemError) as caught:
        read_json(bytearray(b'{"inputs": [[1, 2]]}'), SAMPLE)
    assert caught.value.detail == "wrong shape [1, 2]; expected float32[2, 3] for one sample or [n, ...] of it"
    assert caught.value.extra["got"] == {"shape": [1, 2], "dtype": "float32"}


@pytest.mark.parametrize(
    ("size", "shape"),
    [(24, None), (24, ""), (24, "2;3"), (24, "-2,-3"), (24, "2,3,"), (20, "2,3"), (28, "2,3"), (0, "0,2,3"), (24, "3,2"),
     (24, ",".join(["1"] * 9)), (24, "99999999999,99999999999")],
)  # fmt: skip
def test_a_raw_tensor_that_does_not_fill_its_shape_is_refused(size: int, shape: str | None) -> None:
    with pytest.raises(HttpProblemError) as caught:
        read_raw(bytearray(size), shape, SAMPLE)
    assert caught.value.status == 422


@pytest.mark.parametrize("dtype", ["float64", "float16", "uint8"])
def test_another_dtype_is_recognised_by_its_size(dtype: str) -> None:
    with pytest.raises(HttpProblemError) as caught:
        read_raw(bytearray(np.zeros((2, 3), dtype).tobytes()), "2,3", SAMPLE)
    size = 6 * np.dtype(dtype).itemsize
    assert caught.value.detail.startswith(f"float32[2, 3] has 24 bytes, the body has {size} as {dtype} would have; expected float32[2, 3]")


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_inputs_that_are_no_numbers_are_the_clients_fault(bad: float) -> None:
    with pytest.raises(HttpProblemError) as caught:
        read_raw(bytearray(np.full(6, bad, "<f4").tobytes()), "2,3", SAMPLE)
    assert caught.value.detail.startswith("inputs hold NaN or infinity")


@pytest.mark.parametrize(
    ("numbers", "finite"),
    [([1.0, -2.0], True), ([3e38, -3e38], True), ([math.nan, 0.0], False), ([0.0, -math.inf], False), ([3e38, math.nan], False)],
)
def test_large_numbers_are_finite(numbers: list[float], finite: bool) -> None:
    assert is_finite(np.array([numbers], np.float32)) is finite


# -- integer tensors ---------------------------------------------------------------------------------------------------

INT8 = TensorSpec(name="x", dtype="int8", shape=[1, 2], scale=0.5, zero_point=3)


def test_integers_are_scaled_rounded_and_saturated() -> None:
    real = np.array([[0.0, 0.5, -1.0, 0.26, 1000.0, -1000.0, math.inf]], np.float32)
    np.testing.assert_array_equal(quantize(real, INT8), np.array([[3, 4, 1, 4, 127, -128, 127]], np.int8))


def test_dequantizing_is_the_inverse() -> None:
    every = np.arange(-128, 128, dtype=np.int8)
    np.testing.assert_array_equal(quantize(dequantize(every, INT8), INT8), every)


def test_an_integer_tensor_without_a_scale_is_refused() -> None:
    with pytest.raises(ModelError, match="scale"):
        quantize(ONE, TensorSpec(name="x", dtype="int8", shape=[1, 3]))


def test_a_type_that_nobody_knows_is_refused() -> None:
    with pytest.raises(ModelError, match="complex64"):
        VariantModel(Doubling(), TensorSpec("x", "complex64", [1]), INT8)


class Doubling:
    """An Engine that notes the batches it gets."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def invoke(self, tensor: Tensor) -> Tensor:
        self.batches.append(len(tensor))
        doubled: Tensor = tensor * 2
        return doubled


@pytest.mark.parametrize(("size", "batches"), [(-1, [5]), (1, [1, 1, 1, 1, 1]), (5, [5]), (2, [2, 2, 2]), (8, [8])])
def test_a_fixed_batch_is_looped_over_or_filled_up(size: int, batches: list[int]) -> None:
    engine = Doubling()
    spec = TensorSpec(name="x", dtype="float32", shape=[size, 3])
    inputs = np.arange(15, dtype=np.float32).reshape(5, 3)
    np.testing.assert_array_equal(VariantModel(engine, spec, spec).run(inputs), inputs * 2)
    assert engine.batches == batches


# -- golden outputs ----------------------------------------------------------------------------------------------------

EXPECTED = np.array([[1.0, 0.0], [0.0, 1.0]], np.float32)


def test_the_relative_error_is_that_of_the_textbook() -> None:
    assert compare(EXPECTED * 1.25, EXPECTED, labels=2, tolerance=0.5) == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("answers", "reason"),
    [
        (EXPECTED * 1.51, "relative error of 0.51"),
        (EXPECTED * math.nan, "NaN"),
        (np.array([[1, 0], [0, math.inf]], np.float32), "1 of 4 outputs"),
        (EXPECTED[:1], "shape"),
        (EXPECTED[:, :1], "shape"),
    ],
)
def test_wrong_answers_do_not_pass(answers: Tensor, reason: str) -> None:
    with pytest.raises(ModelError, match=reason):
        compare(answers, EXPECTED, labels=2, tolerance=0.5)


def test_another_label_does_not_pass_though_the_error_is_small() -> None:
    expected = np.array([[0.0, 0.3, 0.0]] + [[10.0, 0.0, 0.0]] * 20, np.float32)
    expected[0] = [5.0, 4.0, 0.0]
    answers = expected.copy()
    answers[0] = [4.4, 4.6, 0.0]
    with pytest.raises(ModelError, match="1 of 21 samples"):
        compare(answers, expected, labels=3, tolerance=0.04)


def test_a_label_on_which_the_float_model_was_undecided_says_nothing() -> None:
    expected = np.array([[5.0, 4.99, 0.0]], np.float32)
    assert compare(expected[:, [1, 0, 2]], expected, labels=3, tolerance=0.05) < 0.05


def golden(**changes: object) -> Golden:
    numbers = pack_floats(np.ones(4, "<f4").tobytes())
    fields: dict[str, object] = {"input_shape": [2, 2], "output_shape": [2, 2], "inputs": numbers, "outputs": numbers}
    return Golden(**(fields | changes))  # type: ignore[arg-type]  # the point is to give wrong ones


@pytest.mark.parametrize(
    "changes",
    [{"inputs": "*"}, {"inputs": ""}, {"input_shape": []}, {"output_shape": [2, 3]}, {"output_shape": [-2, -2]}, {"input_shape": [0, 2]}],
)
def test_golden_numbers_must_fill_their_shapes(changes: dict[str, object]) -> None:
    with pytest.raises(ModelError, match="golden"):
        read_golden(golden(**changes))


# -- the machine -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cpuinfo", "flags"),
    [
        ("processor: 0\nflags\t\t: fpu avx2 sse4_2 smep fma\n\nprocessor: 1\nflags: avx512f\n", ["avx2", "fma", "sse4_2"]),
        ("Features\t: fp asimd evtstrm aes asimddp i8mm\nCPU part\t: 0xd0b\n", ["asimd", "asimddp", "i8mm"]),
        ("", []),
    ],
)
def test_cpu_flags_are_read_on_x86_and_arm(cpuinfo: str, flags: list[str]) -> None:
    assert parse_cpu_flags(cpuinfo) == flags


def test_memory_is_read() -> None:
    assert parse_memory_total("MemTotal:        1024 kB\nMemFree: 5 kB\n") == 1024 * 1024
    assert parse_memory_total("") == 0


def test_functions_are_pure() -> None:
    """Inputs are never changed in place: they may be views of a request's body."""
    changing: list[Callable[[Tensor], object]] = [lambda x: quantize(x, INT8), lambda x: dequantize(x, INT8)]
    for function in changing:
        before = ONE.copy()
        function(ONE)
        np.testing.assert_array_equal(ONE, before)
