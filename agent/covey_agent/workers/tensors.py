"""The inputs of an inference request, as JSON or as a raw tensor, into float32[n, ...]; and whether there was one sample or a batch.

Every error says what was expected and what came.
"""

import math
from typing import Any

import msgspec
import numpy as np

from covey_agent.workers.http import HttpProblemError
from covey_agent.workers.runtimes.engine import Floats

RAW = "application/octet-stream"
SHAPE_HEADER = "x-covey-shape"
_MAX_RANK = 8
_OTHER_SIZES = (("float64", 8), ("float16", 2), ("uint8", 1))  # bytes; what is sent by mistake
MAX_SAMPLES = 4096  # in one request: it bounds the answer, too


class InferRequest(msgspec.Struct, forbid_unknown_fields=True):
    """The JSON body of POST /v1/infer."""

    inputs: list[Any]  # nested lists of numbers


def read_json(body: bytearray, sample_shape: tuple[int, ...]) -> tuple[Floats, bool]:
    """Raises HttpProblemError."""
    try:
        inputs = msgspec.json.decode(body, type=InferRequest).inputs
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise HttpProblemError(400, f'expected a JSON object {{"inputs": [...]}}: {exc}') from exc
    try:
        numbers = np.asarray(inputs)
    except ValueError as exc:
        raise _not_numbers(sample_shape) from exc
    if numbers.dtype.kind not in "iuf":  # texts, booleans and null are not numbers, even if numpy would make some of them
        raise _not_numbers(sample_shape)
    with np.errstate(over="ignore"):  # too large for float32 becomes infinity and is refused as such
        return to_batch(numbers.astype(np.float32), sample_shape)


def read_raw(body: bytearray, shape_header: str | None, sample_shape: tuple[int, ...]) -> tuple[Floats, bool]:
    """Little-endian float32 in C order, its shape in the header, e.g. `1,28,28`. Raises HttpProblemError."""
    got: dict[str, Any] = {"bytes": len(body)}
    if shape_header is None:
        raise _wrong_input("a raw tensor needs the header X-Covey-Shape, e.g. 1,28,28", sample_shape, got)
    sizes = shape_header.split(",")
    if len(sizes) > _MAX_RANK or not all(size.strip().isdecimal() and len(size) <= 12 for size in sizes):
        raise _wrong_input(f"expected sizes separated by commas in X-Covey-Shape, got {shape_header!r:.80}", sample_shape, got)
    shape = [int(size) for size in sizes]
    if math.prod(shape) * 4 != len(body):
        likely = next((f" as {dtype} would have" for dtype, size in _OTHER_SIZES if math.prod(shape) * size == len(body)), "")
        detail = f"float32{shape} has {math.prod(shape) * 4} bytes, the body has {len(body)}{likely}"
        raise _wrong_input(detail, sample_shape, got | {"shape": shape})
    return to_batch(np.frombuffer(body, dtype="<f4").reshape(shape), sample_shape)


def to_batch(array: Floats, sample_shape: tuple[int, ...]) -> tuple[Floats, bool]:
    """(float32[n, *sample_shape], whether it was one sample without a batch). Raises HttpProblemError."""
    single = array.shape == sample_shape
    if not single and array.shape[1:] != sample_shape:
        raise _wrong_input(f"wrong shape {list(array.shape)}", sample_shape, {"shape": list(array.shape), "dtype": "float32"})
    if array.size == 0:
        raise _wrong_input("an empty batch has no answer", sample_shape, {"shape": list(array.shape), "dtype": "float32"})
    if not single and len(array) > MAX_SAMPLES:
        raise _wrong_input(f"{len(array)} samples, at most {MAX_SAMPLES} in one request", sample_shape, {"shape": list(array.shape)})
    # NaN would come out as NaN, and the model would be blamed for it.
    if not is_finite(array):
        raise _wrong_input("inputs hold NaN or infinity", sample_shape, {"shape": list(array.shape), "dtype": "float32"})
    return (array[None] if single else array), single


def is_finite(array: Floats) -> bool:
    """Whether all numbers are; by the sum of their squares first, which is a pass over the memory and makes no second array."""
    flat = array.reshape(-1)
    with np.errstate(all="ignore"):
        return bool(np.isfinite(np.dot(flat, flat))) or bool(np.isfinite(array).all())  # squares may overflow where numbers do not


def _not_numbers(sample_shape: tuple[int, ...]) -> HttpProblemError:
    return _wrong_input("inputs must be nested lists of numbers, all rows of equal length", sample_shape, {})


def _wrong_input(detail: str, sample_shape: tuple[int, ...], got: dict[str, Any]) -> HttpProblemError:
    expected = {"shape": [-1, *sample_shape], "dtype": "float32"}
    return HttpProblemError(
        422, f"{detail}; expected float32{list(sample_shape)} for one sample or [n, ...] of it", {"expected": expected, "got": got}
    )
