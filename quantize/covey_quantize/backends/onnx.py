"""Reduced ONNX variants by ONNX Runtime's quantizer.

Rules that cost accuracy or speed when broken (measured, docs/quantization.md): never Conv in dynamic quantization; static with
unsigned activations, signed per-channel weights, ranges from minimum and maximum, and reduce_range (7-bit weights), without which
processors that lack VNNI saturate and the error grows three- to tenfold.
"""

import tempfile
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_dynamic, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from onnxruntime.transformers.float16 import convert_float_to_float16

from covey_quantize.errors import ConversionError, translate
from covey_quantize.onnxfile import write_clean
from covey_quantize.plan import Recipe
from covey_quantize.quiet import quiet

_DYNAMIC_OPERATORS = ["MatMul", "Gemm"]
_BATCH = 16


def make_onnx(recipe: Recipe, source: Path, out: Path, *, calibration: NDArray[np.float32], input_name: str, dynamic_batch: bool) -> None:
    """Write one variant of the float file `source` to `out`. Raises ConversionError."""
    with translate(ConversionError, f"{out.stem}: quantization failed"), quiet(), tempfile.TemporaryDirectory(dir=out.parent) as scratch:
        raw = Path(scratch) / "raw.onnx"
        match recipe:
            case Recipe.FLOAT32:
                write_clean(onnx.load(source), out)
                return
            case Recipe.FLOAT16:
                _float16(source, raw)
            case Recipe.DYNAMIC_INT8:
                _dynamic_int8(source, raw)
            case Recipe.STATIC_INT8:
                batches = _batches(calibration, _BATCH if dynamic_batch else 1)
                _static_int8(_prepared(source, Path(scratch)), raw, [{input_name: batch} for batch in batches])
            case _:
                raise ConversionError(f"{out.stem}: no ONNX recipe for {recipe}")
        write_clean(onnx.load(raw), out)


def _float16(source: Path, out: Path) -> None:
    onnx.save(convert_float_to_float16(onnx.load(source), keep_io_types=True), out)


def _dynamic_int8(source: Path, out: Path) -> None:
    quantize_dynamic(str(source), str(out), weight_type=QuantType.QInt8, op_types_to_quantize=_DYNAMIC_OPERATORS)


def _static_int8(source: Path, out: Path, batches: list[dict[str, NDArray[np.float32]]]) -> None:
    quantize_static(
        str(source),
        str(out),
        _Reader(batches),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        reduce_range=True,
        calibrate_method=CalibrationMethod.MinMax,
    )


def _prepared(source: Path, scratch: Path) -> Path:
    """The graph with shapes inferred and operators fused, as the static quantizer wants it."""
    out = scratch / "prepared.onnx"
    try:
        quant_pre_process(str(source), str(out))
    except Exception:  # noqa: BLE001  # symbolic inference asserts on TorchScript transformers; without it the rest still works
        quant_pre_process(str(source), str(out), skip_symbolic_shape=True)
    return out


def _batches(x: NDArray[np.float32], size: int) -> list[NDArray[np.float32]]:
    return [x[i : i + size] for i in range(0, len(x), size)]


class _Reader(CalibrationDataReader):  # type: ignore[misc]  # ONNX Runtime publishes no types
    """Hands the calibration batches out, once."""

    def __init__(self, batches: list[dict[str, NDArray[np.float32]]]) -> None:
        self._rest = iter(batches)

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        """The next batch, or None at the end."""
        return next(self._rest, None)
