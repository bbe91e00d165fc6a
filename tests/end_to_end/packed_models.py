"""Releases for the live fleet: a real ONNX model of any size with random weights, packed as `covey release import` takes it."""

import base64
import json
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

_PIXELS, _CLASSES, _GOLDENS = 784, 10, 4
SMALL, BIG = 8, 2000  # hidden units; 32 KB, and 6.4 MB: 98 chunks in 7 groups

Floats = NDArray[np.float32]


def pack_model(folder: Path, *, seed: int, hidden: int = SMALL, accuracy_drop: float | None = None, nudge: float = 0.0) -> Path:
    """Write `release.json` and the model. With `accuracy_drop`, as if it had been measured so; `nudge` moves the last weights only."""
    chance = np.random.default_rng(seed)
    first: Floats = (chance.standard_normal((_PIXELS, hidden)) / 28).astype(np.float32)
    second: Floats = (chance.standard_normal((hidden, _CLASSES)) + nudge).astype(np.float32)
    inputs: Floats = chance.random((_GOLDENS, 1, 28, 28)).astype(np.float32)
    outputs: Floats = np.maximum(inputs.reshape(_GOLDENS, _PIXELS) @ first, 0) @ second
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.onnx").write_bytes(_onnx(first, second))
    variant = {
        "name": "onnx-float32",
        "precision": "float32",
        "runtime": "onnxruntime",
        "min_runtime_version": "1.20",
        "file": "model.onnx",
        "input": {"name": "input", "dtype": "float32", "shape": [-1, 1, 28, 28]},
        "output": {"name": "output", "dtype": "float32", "shape": [-1, _CLASSES]},
        "golden_tolerance": 0.01,
    }
    if accuracy_drop is not None:
        variant["quality"] = {
            "accuracy": 0.9 - accuracy_drop,
            "accuracy_drop": accuracy_drop,
            "relative_error": 0.01,
            "latency_ms": 0.1,
            "samples": 1000,
        }
    golden = {"input_shape": list(inputs.shape), "output_shape": list(outputs.shape), "inputs": _pack(inputs), "outputs": _pack(outputs)}
    release = {"model": "digits", "labels": [str(label) for label in range(_CLASSES)], "variants": [variant], "golden": golden}
    (folder / "release.json").write_text(json.dumps(release), "utf-8")
    return folder


def _onnx(first: Floats, second: Floats) -> bytes:
    nodes = [
        helper.make_node("Flatten", ["input"], ["flat"]),
        helper.make_node("MatMul", ["flat", "first"], ["raw"]),
        helper.make_node("Relu", ["raw"], ["hidden"]),
        helper.make_node("MatMul", ["hidden", "second"], ["output"]),
    ]
    take = helper.make_tensor_value_info("input", TensorProto.FLOAT, ["n", 1, 28, 28])
    give = helper.make_tensor_value_info("output", TensorProto.FLOAT, ["n", _CLASSES])
    weights = [numpy_helper.from_array(first, "first"), numpy_helper.from_array(second, "second")]
    model = helper.make_model(
        helper.make_graph(nodes, "packed", [take], [give], weights), opset_imports=[helper.make_opsetid("", 13)], ir_version=8
    )
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def _pack(values: Floats) -> str:
    return base64.b64encode(np.ascontiguousarray(values, dtype="<f4").tobytes()).decode("ascii")
