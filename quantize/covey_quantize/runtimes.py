"""ONNX Runtime and LiteRT behind one small interface: float32 in, float32 out, one thread.

Used only in child processes (`measure_child`), because a bad file can crash either runtime.
"""

from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from covey_contract.release import Runtime, TensorSpec

Floats = NDArray[np.float32]


class Runner(Protocol):
    """One loaded artifact."""

    input: TensorSpec
    output: TensorSpec

    def run(self, x: Floats) -> Floats:
        """Outputs for a batch that the artifact takes."""
        ...


def open_runner(path: Path, runtime: Runtime) -> Runner:
    """Load an artifact with the runtime it is made for."""
    return OnnxRunner(path) if runtime is Runtime.ONNXRUNTIME else LiteRtRunner(path)


class OnnxRunner:
    """A session of ONNX Runtime on the CPU."""

    def __init__(self, path: Path) -> None:
        import onnxruntime  # noqa: PLC0415  # a child loads only the runtime it measures

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.log_severity_level = 4
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.input = _onnx_spec(self._session.get_inputs()[0])
        self.output = _onnx_spec(self._session.get_outputs()[0])

    def run(self, x: Floats) -> Floats:
        """Outputs for x[n, ...]."""
        outputs: Floats = self._session.run(None, {self.input.name: x})[0]
        return outputs


class LiteRtRunner:
    """An interpreter of ai-edge-litert; integer inputs and outputs are converted here, as a device must."""

    def __init__(self, path: Path) -> None:
        from ai_edge_litert.interpreter import Interpreter  # noqa: PLC0415  # the same

        self._interpreter = Interpreter(str(path), num_threads=1)
        self._interpreter.allocate_tensors()
        take, give = self._interpreter.get_input_details()[0], self._interpreter.get_output_details()[0]
        self._take, self._give = int(take["index"]), int(give["index"])
        self.input, self.output = _litert_spec(take), _litert_spec(give)

    def run(self, x: Floats) -> Floats:
        """Outputs for x[1, ...]: LiteRT files have a fixed batch of one."""
        self._interpreter.set_tensor(self._take, quantized(x, self.input))
        self._interpreter.invoke()
        return dequantized(self._interpreter.get_tensor(self._give), self.output)


def quantized(x: Floats, spec: TensorSpec) -> NDArray[Any]:
    """Floats as the artifact's input wants them: round(x / scale) + zero point, clipped."""
    if spec.dtype == "float32":
        return x
    limits = np.iinfo(spec.dtype)
    whole: NDArray[Any] = np.clip(np.round(x / spec.scale) + spec.zero_point, limits.min, limits.max).astype(spec.dtype)
    return whole


def dequantized(values: NDArray[Any], spec: TensorSpec) -> Floats:
    """The inverse for outputs: (q - zero point) * scale."""
    if spec.dtype == "float32":
        return values.astype(np.float32, copy=False)
    return ((values.astype(np.float32) - spec.zero_point) * np.float32(spec.scale)).astype(np.float32)


def _onnx_spec(value: Any) -> TensorSpec:
    shape = [dim if isinstance(dim, int) else -1 for dim in value.shape]
    return TensorSpec(name=str(value.name), dtype={"tensor(float)": "float32"}.get(value.type, str(value.type)), shape=shape)


def _litert_spec(detail: Any) -> TensorSpec:
    scale, zero_point = detail["quantization"]
    shape = [int(dim) for dim in detail["shape"]]  # np.int32 scalars, which JSON refuses
    return TensorSpec(
        name=str(detail["name"]), dtype=np.dtype(detail["dtype"]).name, shape=shape, scale=float(scale), zero_point=int(zero_point)
    )
