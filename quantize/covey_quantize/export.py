"""torch -> ONNX: the dynamo exporter, operator set 18 (what older agents still run), any batch size; TorchScript as fallback."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from covey_quantize.errors import DatasetError, ExportError, translate
from covey_quantize.module import load_module, load_program
from covey_quantize.quiet import quiet
from covey_quantize.source import Source

logger = logging.getLogger(__name__)

OPSET = 18
_FALLBACK_OPSET = 17  # the newest that the TorchScript exporter handles well
_MAX_BATCH = 4096
_BATCH = 32


def export_onnx(source: Source, x: NDArray[np.float32], out: Path) -> str:
    """Write the float ONNX file and return the exporter's name. `x`: a few real samples."""
    if source.form == "pt2":
        # Its shapes were decided when it was exported, so no dynamic batch is asked for.
        with translate(ExportError, "ONNX export of the .pt2 program"), quiet():
            torch.onnx.export(load_program(source), (), str(out), dynamo=True, **_common(OPSET))
        return "dynamo"
    module = load_module(source)
    sample = torch.from_numpy(np.repeat(x[:1], 2, axis=0))  # batch 2: exporters make special cases of 0 and 1
    try:
        with translate(ExportError, "ONNX export (dynamo)"), quiet(), torch.no_grad():
            batch = torch.export.Dim("batch", min=1, max=_MAX_BATCH)
            torch.onnx.export(module, (sample,), str(out), dynamo=True, dynamic_shapes=({0: batch},), **_common(OPSET))
        return "dynamo"
    except ExportError as exc:
        logger.warning("falling back to the TorchScript exporter: %s", exc)
    with translate(ExportError, "ONNX export (dynamo, then TorchScript)"), quiet(), torch.no_grad():
        axes = {"input": {0: "batch"}, "output": {0: "batch"}}
        torch.onnx.export(module, (sample,), str(out), dynamo=False, dynamic_axes=axes, **_common(_FALLBACK_OPSET))
    return "torchscript"


def float_outputs(source: Source, x: NDArray[np.float32]) -> NDArray[np.float32]:
    """What the torch model itself answers: the truth that every variant is measured against. One thread: reproducible."""
    module = load_module(source)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with translate(DatasetError, f"the model does not take samples of shape {list(x.shape[1:])}"), quiet(), torch.no_grad():
            return np.concatenate([_answered(module, x[i : i + _BATCH]) for i in range(0, len(x), _BATCH)])
    finally:
        torch.set_num_threads(threads)


def _answered(module: nn.Module, x: NDArray[np.float32]) -> NDArray[np.float32]:
    output = module(torch.from_numpy(x))
    if not isinstance(output, torch.Tensor) or output.dtype != torch.float32 or output.ndim < 1 or len(output) != len(x):
        what = f"{output.dtype}{list(output.shape)}" if isinstance(output, torch.Tensor) else type(output).__name__
        raise ExportError(f"the model must answer one float32 tensor with a row a sample, got {what} for {len(x)} samples")
    return output.numpy().astype(np.float32, copy=False)


def _common(opset: int) -> dict[str, Any]:
    return {"input_names": ["input"], "output_names": ["output"], "opset_version": opset, "external_data": False, "verbose": False}
