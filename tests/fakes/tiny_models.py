"""Tiny real models, made byte by byte: linear layers as ONNX and as TFLite, and the artifacts and manifests around them."""

import importlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


def linear_onnx(weights: Floats, bias: Floats, *, batch: int | None = None) -> bytes:
    """y = x @ weights.T + bias as an ONNX file; weights: float32[outputs, inputs]; `batch` None: any."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    outputs, inputs = weights.shape
    size = "n" if batch is None else batch
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["input", "w", "b"], ["output"], transB=1)],
        "linear",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [size, inputs])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, [size, outputs])],
        [numpy_helper.from_array(weights, "w"), numpy_helper.from_array(bias, "b")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8, producer_name="")
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


@dataclass(frozen=True, slots=True)
class Int8:
    """How the input and output of an int8 model are quantized: real = (quantized - zero_point) * scale."""

    input_scale: float
    input_zero: int
    output_scale: float
    output_zero: int


def linear_tflite(weights: Floats, bias: Floats, *, int8: Int8 | None = None) -> bytes:
    """The same as a TFLite file with a fixed batch of 1, written with the schema that ai-edge-litert carries; fully int8 if asked for."""
    from ai_edge_litert import schema_py_generated as schema

    types = schema.TensorType
    outputs, inputs = weights.shape
    model, graph = schema.ModelT(), schema.SubGraphT()
    model.version, model.description, model.buffers = 3, "", [schema.BufferT()]
    graph.name, graph.tensors = "main", []

    def tensor(name: str, shape: tuple[int, ...], kind: int, *, data: Any = None, scale: float = 0.0, zero: int = 0) -> int:
        made = schema.TensorT()
        made.name, made.shape, made.type, made.buffer = name, list(shape), kind, 0
        if scale:
            made.quantization = schema.QuantizationParametersT()
            made.quantization.scale, made.quantization.zeroPoint = [scale], [zero]
        if data is not None:
            buffer = schema.BufferT()
            buffer.data = np.frombuffer(data.tobytes(), np.uint8)
            model.buffers.append(buffer)
            made.buffer = len(model.buffers) - 1
        graph.tensors.append(made)
        return len(graph.tensors) - 1

    code, operator, options = schema.OperatorCodeT(), schema.OperatorT(), schema.FullyConnectedOptionsT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.FULLY_CONNECTED
    if int8 is None:
        code.version = 1
        source = tensor("input", (1, inputs), types.FLOAT32)
        w = tensor("w", weights.shape, types.FLOAT32, data=weights.astype("<f4"))
        b = tensor("b", bias.shape, types.FLOAT32, data=bias.astype("<f4"))
        sink = tensor("output", (1, outputs), types.FLOAT32)
    else:
        code.version = 4  # the first with int8
        scale = float(np.abs(weights).max()) / 127
        source = tensor("input", (1, inputs), types.INT8, scale=int8.input_scale, zero=int8.input_zero)
        w = tensor("w", weights.shape, types.INT8, data=np.rint(weights / scale).astype(np.int8), scale=scale)
        bias_scale = scale * int8.input_scale
        b = tensor("b", bias.shape, types.INT32, data=np.rint(bias / bias_scale).astype("<i4"), scale=bias_scale)
        sink = tensor("output", (1, outputs), types.INT8, scale=int8.output_scale, zero=int8.output_zero)
    operator.inputs, operator.outputs = [source, w, b], [sink]
    operator.builtinOptionsType, operator.builtinOptions = schema.BuiltinOptions.FullyConnectedOptions, options
    graph.inputs, graph.outputs, graph.operators = [source], operator.outputs, [operator]
    model.operatorCodes, model.subgraphs = [code], [graph]
    flatbuffers: Any = importlib.import_module("flatbuffers")  # publishes no types
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())
