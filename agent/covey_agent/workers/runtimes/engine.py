"""From the float32 that a user sees to whatever tensors a variant has, and back.

A variant may take integers (real = (quantized - zero_point) * scale) and may have a fixed batch of 1, as TFLite files have; the
user always gives and gets float32[n, ...].
"""

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from covey_agent.workers.errors import ModelError
from covey_contract.release import TensorSpec

Floats = NDArray[np.float32]
Tensor = NDArray[Any]  # of the variant's own type
_FLOATS = ("float32", "float16")
_INTEGERS = ("int8", "uint8", "int16", "uint16")


class Engine(Protocol):
    """One loaded artifact in its runtime."""

    def invoke(self, tensor: Tensor) -> Tensor:
        """Run the model on one tensor of its own input type. Raises ModelError."""
        ...


class VariantModel:
    """A loaded variant. Not for several threads at once: some runtimes are not."""

    def __init__(self, engine: Engine, source: TensorSpec, sink: TensorSpec) -> None:
        for spec in (source, sink):
            if spec.dtype not in _FLOATS + _INTEGERS:
                raise ModelError(f"tensor {spec.name} has type {spec.dtype}, expected one of {', '.join(_FLOATS + _INTEGERS)}")
        self._engine = engine
        self._source = source
        self._sink = sink

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """The shape of one input, without the batch."""
        return tuple(self._source.shape[1:])

    def run(self, batch: Floats) -> Floats:
        """Answer float32[n, *sample_shape] with float32[n, ...]. Raises ModelError."""
        tensor = quantize(batch, self._source)
        size = self._source.shape[0]
        if size in (-1, len(tensor)):
            outputs = self._engine.invoke(tensor)
        elif size == 1:
            outputs = np.concatenate([self._engine.invoke(tensor[i : i + 1]) for i in range(len(tensor))])
        else:
            outputs = self._run_padded(tensor, size)
        if len(outputs) != len(batch):
            raise ModelError(f"the model gave {len(outputs)} outputs for {len(batch)} inputs")
        return dequantize(outputs, self._sink)

    def _run_padded(self, tensor: Tensor, size: int) -> Tensor:
        """For a fixed batch other than 1: the last batch is filled up with copies of its last sample."""
        padded = np.concatenate([tensor, np.repeat(tensor[-1:], -len(tensor) % size, axis=0)])
        outputs = [self._engine.invoke(padded[i : i + size]) for i in range(0, len(padded), size)]
        return np.concatenate(outputs)[: len(tensor)]


def quantize(real: Floats, spec: TensorSpec) -> Tensor:
    """Real numbers as a tensor of the variant's type; what does not fit saturates, as in the runtimes' own kernels."""
    if spec.dtype in _FLOATS:
        return real.astype(spec.dtype, copy=False)
    if spec.scale <= 0:
        raise ModelError(f"tensor {spec.name} is {spec.dtype} but its scale is {spec.scale}")
    bounds = np.iinfo(spec.dtype)
    # NaN has no integer; 0 is what the runtimes' kernels give, and casting it would be undefined.
    quantized = np.nan_to_num(np.rint(real / np.float32(spec.scale)) + spec.zero_point, nan=float(spec.zero_point))
    tensor: Tensor = np.clip(quantized, bounds.min, bounds.max).astype(spec.dtype)
    return tensor


def dequantize(tensor: Tensor, spec: TensorSpec) -> Floats:
    """The inverse of `quantize`, up to rounding."""
    if tensor.dtype.kind == "f":
        return tensor.astype(np.float32, copy=False)
    return (tensor.astype(np.float32) - np.float32(spec.zero_point)) * np.float32(spec.scale)
