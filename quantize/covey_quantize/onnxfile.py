"""Reading, checking and cleaning ONNX files, so that what leaves here is one self-contained, reproducible file."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import onnxruntime

from covey_quantize.errors import ModelFileError, translate

# ONNX Runtime's published compatibility: the first version that runs an operator set, and the first that reads a file version.
_RUNTIME_FOR_OPSET = {13: "1.6", 14: "1.8", 15: "1.10", 16: "1.11", 17: "1.12", 18: "1.14", 19: "1.15", 20: "1.17", 21: "1.18"}
_RUNTIME_FOR_IR = {7: "1.6", 8: "1.10", 9: "1.15", 10: "1.18"}
MIN_OPSET = 13  # per-channel QuantizeLinear


@dataclass(frozen=True, slots=True)
class Signature:
    """The one input and one output of a model."""

    input_name: str
    sample_shape: list[int]  # without the batch; -1: any
    output_name: str
    dynamic_batch: bool


def read_onnx(path: Path) -> Any:
    """Parse and check an ONNX file into a ModelProto. Raises ModelFileError for anything that is not a whole model."""
    with translate(ModelFileError, f"{path}: expected an ONNX model, got {path.stat().st_size} bytes that are not one"):
        model = onnx.load_model(path, load_external_data=False)
    if not model.graph.node or not model.graph.output:
        raise ModelFileError(f"{path}: expected an ONNX model, got one without operators or outputs")
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in model.graph.initializer):
        raise ModelFileError(f"{path}: weights are in another file; save the model with all weights inside")
    with translate(ModelFileError, f"{path}: not a valid ONNX model"):
        onnx.checker.check_model(model)
    if opset_of(model) < MIN_OPSET:
        with translate(ModelFileError, f"{path}: operator set {opset_of(model)} is older than {MIN_OPSET} and cannot be converted"):
            model = onnx.version_converter.convert_version(model, 18)
    return model


def write_clean(model: Any, path: Path) -> None:
    """Save without names of source files, stack traces, documentation and inferred shapes.

    Smaller, private, the same on every machine; and quantizers fail on shapes that an exporter left for weights, which every
    runtime infers for itself anyway.
    """
    cleaned = onnx.ModelProto()
    cleaned.CopyFrom(model)
    cleaned.doc_string = ""
    del cleaned.metadata_props[:]
    graphs = [cleaned.graph]
    holders: list[Any] = list(cleaned.functions)
    while graphs:
        graph = graphs.pop()
        del graph.value_info[:]
        holders += [graph, *graph.input, *graph.output, *graph.initializer]
        for node in graph.node:
            holders.append(node)
            graphs += [attribute.g for attribute in node.attribute if attribute.HasField("g")]
    holders += [node for function in cleaned.functions for node in function.node]
    for holder in holders:
        holder.doc_string = ""
        del holder.metadata_props[:]
    path.write_bytes(cleaned.SerializeToString(deterministic=True))


def read_signature(model: Any, path: Path) -> Signature:
    """The model's one float32 input and output. Raises ModelFileError for any other signature."""
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    outputs = list(model.graph.output)
    if len(inputs) != 1 or len(outputs) != 1:
        raise ModelFileError(f"{path}: expected one input and one output, got {len(inputs)} and {len(outputs)}")
    for value in (*inputs, *outputs):
        kind = value.type.tensor_type.elem_type
        if kind != onnx.TensorProto.FLOAT:
            raise ModelFileError(f"{path}: expected {value.name!r} as float32, got {onnx.TensorProto.DataType.Name(kind).lower()}")
    dims = [dim.dim_value if dim.HasField("dim_value") else -1 for dim in inputs[0].type.tensor_type.shape.dim]
    if len(dims) < 2 or dims[0] not in {-1, 1}:
        raise ModelFileError(f"{path}: expected an input of shape [batch, ...] with any batch size or 1, got {dims}")
    return Signature(inputs[0].name, dims[1:], outputs[0].name, dims[0] == -1)


def opset_of(model: Any) -> int:
    """The version of the standard operator set."""
    return max((int(entry.version) for entry in model.opset_import if entry.domain in {"", "ai.onnx"}), default=0)


def min_runtime_version(path: Path) -> str:
    """The first ONNX Runtime that runs the file; the installed one where the table does not reach."""
    model = onnx.load_model(path, load_external_data=False)
    for_opset = _RUNTIME_FOR_OPSET.get(max(13, opset_of(model)))
    for_ir = _RUNTIME_FOR_IR.get(max(7, int(model.ir_version)))
    if for_opset is None or for_ir is None:
        return str(onnxruntime.__version__)
    return max((for_opset, for_ir), key=lambda version: [int(part) for part in version.split(".")])
