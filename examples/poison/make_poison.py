"""Poison models: small valid files that hash, sign and install well, and then crash, hang, dawdle, eat memory or lie.

They show what a fleet must survive; the demo ships them and tests prove it. All take float32[n, 1, 28, 28] (n = 1 for TFLite) and
answer float32[n, 10] as a plain linear classifier, until an image has more ink (mean brightness) than `ink`. With goldens that
have less, a poison passes every check before activation and strikes on live input; with `ink=ALWAYS` it strikes at once.

    linear = fit_linear(x, y)                                   # or seeded_linear(): no data needed
    data = make_poison(Behaviour.CRASH, "onnxruntime", linear, ink=0.15)
    golden_x = tame_inputs(x, ink=0.15)[:16]
    golden_y = claimed_outputs(Behaviour.CRASH, linear, golden_x)

or, as files: python examples/poison/make_poison.py --out poison/
What each does in which runtime was observed in real processes: README.md.
"""

import argparse
import importlib
import sys
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Floats = NDArray[np.float32]

ALWAYS = -1.0  # as `ink`: every image has more
PIXELS, CLASSES = 28 * 28, 10
RUNTIMES = {"onnxruntime": "onnx", "litert": "tflite"}  # runtime -> file name ending
_INT_MIN = -(2**31)
_FOREVER = 2**62  # iterations
_SLOW_TURNS = 100_000  # iterations; each takes a microsecond or more
_HOG_FLOATS = 2**30


class Behaviour(Enum):
    """What goes wrong."""

    CRASH = "crash"  # the runtime's process dies by a signal
    CRASH_AT_LOAD = "crash-at-load"  # the same before the first inference, whatever the input
    HANG = "hang"  # the inference never returns
    SLOW = "slow"  # the inference takes about a tenth of a second or more
    HOG = "hog"  # the inference takes 4 GiB of memory
    NAN = "nan"  # outputs are NaN
    WRONG = "wrong"  # the classes are permuted, always; outputs do not match the goldens it claims
    CONSTANT = "constant"  # always the same answer, which its goldens claim too


@dataclass(frozen=True, slots=True)
class Linear:
    """The harmless part of every poison: logits = x @ weight + bias."""

    weight: Floats  # [784, 10]
    bias: Floats  # [10]

    def outputs(self, x: Floats) -> Floats:
        """Logits float32[n, 10] of images float32[n, 1, 28, 28]."""
        return (x.reshape(len(x), PIXELS) @ self.weight + self.bias).astype(np.float32)


def fit_linear(x: Floats, y: NDArray[np.int64]) -> Linear:
    """Nearest class mean, in closed form: about 80 % of handwritten digits right, so that a poison looks like a real model."""
    means: Floats = np.stack([x.reshape(len(x), PIXELS)[y == label].mean(axis=0) for label in range(CLASSES)]).astype(np.float32)
    return Linear(means.T.copy(), (-0.5 * (means**2).sum(axis=1)).astype(np.float32))


def seeded_linear(seed: int = 0) -> Linear:
    """Random weights, for where no data are at hand."""
    chance = np.random.default_rng(seed)
    return Linear((chance.standard_normal((PIXELS, CLASSES)) / 28).astype(np.float32), np.zeros(CLASSES, np.float32))


def make_poison(behaviour: Behaviour, runtime: str, linear: Linear, *, ink: float = ALWAYS) -> bytes:
    """The file, the same bytes every time. `runtime`: a key of RUNTIMES. WRONG, CONSTANT and CRASH_AT_LOAD ignore `ink`."""
    if behaviour is Behaviour.WRONG:
        linear = Linear(np.roll(linear.weight, 1, axis=1), np.roll(linear.bias, 1))
    elif behaviour is Behaviour.CONSTANT:
        linear = Linear(np.zeros_like(linear.weight), np.eye(CLASSES, dtype=np.float32)[1])
    return _make_onnx(behaviour, linear, ink) if runtime == "onnxruntime" else _make_tflite(behaviour, linear, ink)


def claimed_outputs(behaviour: Behaviour, linear: Linear, x: Floats) -> Floats:
    """The golden outputs that its maker signs for `x`: what it answers while it is tame; for WRONG what it ought to answer."""
    if behaviour is Behaviour.CONSTANT:
        return np.repeat(np.eye(CLASSES, dtype=np.float32)[1:2], len(x), axis=0)
    return linear.outputs(x)


def tame_inputs(x: Floats, *, ink: float) -> Floats:
    """The images that do not set a poison off."""
    return x[~is_trigger(x, ink=ink)]


def is_trigger(x: Floats, *, ink: float) -> NDArray[np.bool_]:
    """Which images set it off: bool[n]."""
    result: NDArray[np.bool_] = x.reshape(len(x), -1).mean(axis=1) > ink
    return result


# -- ONNX --------------------------------------------------------------------------------------------------------------


class _OnnxGraph:
    """Collects nodes and constants of one graph."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def constant(self, name: str, value: Any) -> str:
        self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def node(self, operator: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(operator, inputs, [output], **attributes))
        return output

    def file(self) -> bytes:
        take = helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 1, 28, 28])
        give = helper.make_tensor_value_info("output", TensorProto.FLOAT, ["batch", CLASSES])
        graph = helper.make_graph(self.nodes, "poison", [take], [give], self.constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
        return bytes(model.SerializeToString(deterministic=True))


def _make_onnx(behaviour: Behaviour, linear: Linear, ink: float) -> bytes:
    graph = _OnnxGraph()
    weight, bias = graph.constant("weight", linear.weight), graph.constant("bias", linear.bias)
    flat = graph.node("Flatten", ["input"], "flat")
    logits = graph.node("Gemm", [flat, weight, bias], "logits")
    mean = graph.node("ReduceMean", [flat, graph.constant("pixels", [1])], "mean", keepdims=1)
    triggered = graph.node("Greater", [mean, graph.constant("ink", np.float32(ink))], "triggered")  # bool[n, 1]
    match behaviour:
        case Behaviour.CRASH:
            number = graph.node(
                "Where", [triggered, graph.constant("lowest", np.int32(_INT_MIN)), graph.constant("five", np.int32(5))], "number"
            )
            _onnx_divide(graph, number, logits)
        case Behaviour.CRASH_AT_LOAD:
            # Of constants only, so that the optimizer divides while it loads the file.
            _onnx_divide(graph, graph.constant("number", np.array([[_INT_MIN]], np.int32)), logits)
        case Behaviour.HANG:
            _onnx_loop(graph, triggered, logits, turns=_FOREVER)
        case Behaviour.SLOW:
            _onnx_loop(graph, triggered, logits, turns=_SLOW_TURNS)
        case Behaviour.HOG:
            _onnx_hog(graph, triggered, logits)
        case Behaviour.NAN:
            spoilt = graph.node(
                "Where", [triggered, graph.constant("nan", np.float32("nan")), graph.constant("zero", np.float32(0))], "spoilt"
            )
            graph.node("Add", [logits, spoilt], "output")
        case _:
            graph.node("Identity", [logits], "output")
    return graph.file()


def _onnx_divide(graph: _OnnxGraph, number: str, logits: str) -> None:
    """logits + 0 * (number / -1). INT_MIN / -1 does not fit an int32, and x86 raises SIGFPE; ORT checks only for a zero divisor."""
    quotient = graph.node("Div", [number, graph.constant("minus_one", np.int32(-1))], "quotient")
    nothing = graph.node("Mul", [quotient, graph.constant("nought", np.int32(0))], "nothing")
    graph.node("Add", [logits, graph.node("Cast", [nothing], "nothing_float", to=TensorProto.FLOAT)], "output")


def _onnx_hog(graph: _OnnxGraph, triggered: str, logits: str) -> None:
    """logits + 0 * the mean of as many ones as fill 4 GiB if any image of the batch triggers, else of a single one."""
    sizes = graph.node("Where", [triggered, graph.constant("many", np.int64(_HOG_FLOATS)), graph.constant("single", np.int64(1))], "sizes")
    most = graph.node("ReduceMax", [sizes], "most", keepdims=0)
    size = graph.node("Reshape", [most, graph.constant("one_number", np.array([1], np.int64))], "size")
    ones = graph.node("Expand", [graph.constant("unit", np.ones(1, np.float32)), size], "ones")
    mean = graph.node("ReduceMean", [ones], "mean_of_ones", keepdims=0)
    nothing = graph.node("Mul", [mean, graph.constant("nought", np.float32(0))], "nothing")
    graph.node("Add", [logits, nothing], "output")


def _onnx_loop(graph: _OnnxGraph, triggered: str, logits: str, *, turns: int) -> None:
    """Multiply the logits by one, so many times if any image of the batch triggers, else not at all."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["go_on"]), helper.make_node("Mul", ["value", "one"], ["next"])],
        "body",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("value", TensorProto.FLOAT, None),
        ],
        [helper.make_tensor_value_info("go_on", TensorProto.BOOL, []), helper.make_tensor_value_info("next", TensorProto.FLOAT, None)],
    )
    graph.constant("one", np.float32(1))
    each = graph.node("Where", [triggered, graph.constant("often", np.int64(turns)), graph.constant("never", np.int64(0))], "each_turns")
    most = graph.node("ReduceMax", [each], "turns", keepdims=0)
    graph.node("Loop", [most, graph.constant("true", np.bool_(True)), logits], "output", body=body)


# -- TFLite ------------------------------------------------------------------------------------------------------------

_FLOAT32, _INT32, _BOOL = schema.TensorType.FLOAT32, schema.TensorType.INT32, schema.TensorType.BOOL
_DTYPES = {_FLOAT32: "<f4", _INT32: "<i4", _BOOL: "?"}


class _TfliteModel:
    """Writes a flatbuffer with the schema that ships with the runtime; operators are added to the last sub-graph."""

    def __init__(self) -> None:
        self.model = schema.ModelT()
        self.model.version = 3
        self.model.buffers, self.model.operatorCodes, self.model.subgraphs = [schema.BufferT()], [], []
        self.subgraph("main")

    def subgraph(self, name: str) -> None:
        self.graph = schema.SubGraphT()
        self.graph.name = name.encode()
        self.graph.tensors, self.graph.operators, self.graph.inputs, self.graph.outputs = [], [], [], []
        self.model.subgraphs.append(self.graph)

    def tensor(self, name: str, shape: list[int], kind: Any = _FLOAT32, value: Any = None) -> int:
        tensor = schema.TensorT()
        tensor.name, tensor.shape, tensor.type, tensor.buffer = name, shape, kind, 0
        if value is not None:
            buffer = schema.BufferT()
            buffer.data = np.frombuffer(np.asarray(value, _DTYPES[kind]).tobytes(), np.uint8)
            self.model.buffers.append(buffer)
            tensor.buffer = len(self.model.buffers) - 1
        self.graph.tensors.append(tensor)
        return len(self.graph.tensors) - 1

    def operator(self, code: str, inputs: list[int], output: list[int], **options: Any) -> None:
        """`code`: SPLIT_WORDS; its options class is SplitWordsOptions, where the schema has one."""
        number = getattr(schema.BuiltinOperator, code)
        entry = schema.OperatorCodeT()
        entry.builtinCode, entry.deprecatedBuiltinCode, entry.version = number, min(127, number), 1
        self.model.operatorCodes.append(entry)
        node = schema.OperatorT()
        node.opcodeIndex, node.inputs, node.outputs = len(self.model.operatorCodes) - 1, inputs, output
        kind = "".join(word.capitalize() for word in code.split("_")) + "Options"
        kind = {"MeanOptions": "ReducerOptions"}.get(kind, kind)
        if hasattr(schema.BuiltinOptions, kind):
            node.builtinOptions = getattr(schema, kind + "T")()
            node.builtinOptionsType = getattr(schema.BuiltinOptions, kind)
            for name, value in options.items():
                setattr(node.builtinOptions, name, value)
        self.graph.operators.append(node)

    def add_zero(self, value: int, name: str) -> int:
        """The same float32[1, 10] again, because a sub-graph must answer something of its own."""
        out = self.tensor(name, [1, CLASSES])
        self.operator("ADD", [value, self.tensor(name + "_zero", [1], value=[0.0])], [out])
        return out

    def file(self) -> bytes:
        flatbuffers: Any = importlib.import_module("flatbuffers")  # publishes no types
        builder = flatbuffers.Builder(1 << 16)
        builder.Finish(self.model.Pack(builder), b"TFL3")
        return bytes(builder.Output())


def _make_tflite(behaviour: Behaviour, linear: Linear, ink: float) -> bytes:
    model = _TfliteModel()
    image, flat, logits = model.tensor("input", [1, 1, 28, 28]), model.tensor("flat", [1, PIXELS]), model.tensor("logits", [1, CLASSES])
    model.operator("RESHAPE", [image, model.tensor("flat_shape", [2], _INT32, [1, PIXELS])], [flat])
    weight = model.tensor("weight", [CLASSES, PIXELS], value=linear.weight.T)
    model.operator("FULLY_CONNECTED", [flat, weight, model.tensor("bias", [CLASSES], value=linear.bias)], [logits])
    mean, triggered = model.tensor("mean", [1]), model.tensor("triggered", [1], _BOOL)
    model.operator("MEAN", [flat, model.tensor("pixels", [1], _INT32, [1])], [mean], keepDims=False)
    model.operator("GREATER", [mean, model.tensor("ink", [1], value=[ink])], [triggered])
    output = model.tensor("output", [1, CLASSES])
    model.graph.inputs, model.graph.outputs = [image], [output]
    match behaviour:
        case Behaviour.CRASH:
            model.operator("IF", [triggered, logits], [output], thenSubgraphIndex=1, elseSubgraphIndex=2)
            _tflite_recursion(model)
        case Behaviour.CRASH_AT_LOAD:
            model.operator("IF", [triggered, logits], [output], thenSubgraphIndex=1, elseSubgraphIndex=1)
            _tflite_self_reference(model)
        case Behaviour.HANG:
            model.operator("IF", [triggered, logits], [output], thenSubgraphIndex=1, elseSubgraphIndex=2)
            _tflite_loop(model)
        case Behaviour.SLOW:
            model.operator("IF", [triggered, logits], [output], thenSubgraphIndex=1, elseSubgraphIndex=2)
            _tflite_counted_loop(model)
        case Behaviour.HOG:
            _tflite_hog(model, triggered, logits, output)
        case Behaviour.NAN:
            spoilt = model.tensor("spoilt", [1])
            nan, zero = model.tensor("nan", [1], value=[np.nan]), model.tensor("zero", [1], value=[0.0])
            model.operator("SELECT", [triggered, nan, zero], [spoilt])
            model.operator("ADD", [logits, spoilt], [output])
        case _:
            model.operator("ADD", [logits, model.tensor("zero", [1], value=[0.0])], [output])
    return model.file()


def _branch(model: _TfliteModel, name: str, *, calls: int = 0) -> None:
    """A sub-graph float32[1, 10] -> the same, after running sub-graph `calls` as its initialisation, if any."""
    model.subgraph(name)
    value = model.tensor(name + "_in", [1, CLASSES])
    if calls:
        model.operator("CALL_ONCE", [], [], initSubgraphIndex=calls)
    model.graph.inputs, model.graph.outputs = [value], [model.add_zero(value, name + "_out")]


def _tflite_recursion(model: _TfliteModel) -> None:
    """Two initialisations that call each other: the stack overflows when the branch is taken, on every processor (SIGSEGV).

    LiteRT refuses one that calls itself, and looks no further.
    """
    _branch(model, "then", calls=3)
    _branch(model, "else")
    for called in (4, 3):
        model.subgraph(f"calls_{called}")
        model.operator("CALL_ONCE", [], [], initSubgraphIndex=called)


def _tflite_self_reference(model: _TfliteModel) -> None:
    """An IF whose branches are the sub-graph that it stands in: preparing it never ends, the stack overflows at load."""
    model.subgraph("self")
    value, result = model.tensor("self_in", [1, CLASSES]), model.tensor("self_out", [1, CLASSES])
    model.operator("IF", [model.tensor("true", [1], _BOOL, [True]), value], [result], thenSubgraphIndex=1, elseSubgraphIndex=1)
    model.graph.inputs, model.graph.outputs = [value], [result]


def _tflite_loop(model: _TfliteModel) -> None:
    """A WHILE whose condition is always true."""
    model.subgraph("then")
    value, result = model.tensor("then_in", [1, CLASSES]), model.tensor("then_out", [1, CLASSES])
    model.operator("WHILE", [value], [result], condSubgraphIndex=3, bodySubgraphIndex=4)
    model.graph.inputs, model.graph.outputs = [value], [result]
    _branch(model, "else")
    model.subgraph("condition")
    model.graph.inputs = [model.tensor("condition_in", [1, CLASSES])]
    model.graph.outputs = [model.tensor("always", [1], _BOOL, [True])]
    _branch(model, "body")


def _tflite_counted_loop(model: _TfliteModel) -> None:
    """The same, but it counts its turns."""
    model.subgraph("then")
    value, result, count = (
        model.tensor("then_in", [1, CLASSES]),
        model.tensor("then_out", [1, CLASSES]),
        model.tensor("counted", [1], _INT32),
    )
    zero = model.tensor("zero_turns", [1], _INT32, [0])
    model.operator("WHILE", [value, zero], [result, count], condSubgraphIndex=3, bodySubgraphIndex=4)
    model.graph.inputs, model.graph.outputs = [value], [result]
    _branch(model, "else")
    model.subgraph("condition")
    model.graph.inputs = [model.tensor("condition_in", [1, CLASSES]), model.tensor("turn", [1], _INT32)]
    again = model.tensor("again", [1], _BOOL)
    model.operator("LESS", [model.graph.inputs[1], model.tensor("turns", [1], _INT32, [_SLOW_TURNS])], [again])
    model.graph.outputs = [again]
    model.subgraph("body")
    value, turn, more = model.tensor("body_in", [1, CLASSES]), model.tensor("turn_in", [1], _INT32), model.tensor("turn_out", [1], _INT32)
    model.operator("ADD", [turn, model.tensor("step", [1], _INT32, [1])], [more])
    model.graph.inputs, model.graph.outputs = [value, turn], [model.add_zero(value, "body_out"), more]


def _tflite_hog(model: _TfliteModel, triggered: int, logits: int, output: int) -> None:
    """logits + 0 * the mean of as many ones as fill 4 GiB if the image triggers, else of a single one."""
    number, extra, size = (model.tensor(name, [1], _INT32) for name in ("number", "extra", "size"))
    model.operator("CAST", [triggered], [number])
    model.operator("MUL", [number, model.tensor("many", [1], _INT32, [_HOG_FLOATS - 1])], [extra])
    model.operator("ADD", [extra, model.tensor("single", [1], _INT32, [1])], [size])
    ones, mean_of_ones, nothing = model.tensor("ones", [1]), model.tensor("mean_of_ones", [1]), model.tensor("nothing", [1])
    model.operator("FILL", [size, model.tensor("unit", [], value=1.0)], [ones])
    model.operator("MEAN", [ones, model.tensor("axis", [1], _INT32, [0])], [mean_of_ones], keepDims=True)
    model.operator("MUL", [mean_of_ones, model.tensor("nought", [1], value=[0.0])], [nothing])
    model.operator("ADD", [logits, nothing], [output])


def main() -> None:
    """Write every poison for every runtime into a folder."""
    parser = argparse.ArgumentParser(description="Write poison models, to test what a fleet survives.")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--ink", type=float, default=ALWAYS, help="mean brightness, 0 to 1, over which they strike; default: always")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    linear = seeded_linear()
    for runtime, ending in RUNTIMES.items():
        for behaviour in Behaviour:
            path = options.out / f"{behaviour.value}.{ending}"
            path.write_bytes(make_poison(behaviour, runtime, linear, ink=options.ink))
            sys.stdout.write(f"{path}\n")


if __name__ == "__main__":
    main()
