"""Tiny real models, made byte by byte: linear layers as ONNX and as TFLite, and the artifacts and manifests around them."""

import importlib
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


def linear_tflite(weights: Floats, bias: Floats) -> bytes:
    """The same as a TFLite file with a fixed batch of 1, written with the schema that ai-edge-litert carries."""
    from ai_edge_litert import schema_py_generated as schema

    outputs, inputs = weights.shape
    model, graph = schema.ModelT(), schema.SubGraphT()
    model.version, model.description, model.buffers = 3, "", [schema.BufferT()]
    graph.name, graph.tensors = "main", []

    def tensor(name: str, shape: tuple[int, ...], data: Floats | None = None) -> int:
        made = schema.TensorT()
        made.name, made.shape, made.type, made.buffer = name, list(shape), schema.TensorType.FLOAT32, 0
        if data is not None:
            buffer = schema.BufferT()
            buffer.data = np.frombuffer(data.astype("<f4").tobytes(), np.uint8)
            model.buffers.append(buffer)
            made.buffer = len(model.buffers) - 1
        graph.tensors.append(made)
        return len(graph.tensors) - 1

    code, operator, options = schema.OperatorCodeT(), schema.OperatorT(), schema.FullyConnectedOptionsT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.FULLY_CONNECTED
    code.version = 1
    source = tensor("input", (1, inputs))
    operator.inputs = [source, tensor("w", weights.shape, weights), tensor("b", bias.shape, bias)]
    operator.outputs = [tensor("output", (1, outputs))]
    operator.builtinOptionsType, operator.builtinOptions = schema.BuiltinOptions.FullyConnectedOptions, options
    graph.inputs, graph.outputs, graph.operators = [source], operator.outputs, [operator]
    model.operatorCodes, model.subgraphs = [code], [graph]
    flatbuffers: Any = importlib.import_module("flatbuffers")  # publishes no types
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())
