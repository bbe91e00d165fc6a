"""What kind of model a graph is: decided from its operators, with the reason in words."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

from covey_quantize.report import ModelKind

_RECURRENT = {"GRU", "LSTM", "RNN", "Loop", "Scan"}
_ATTENTION = {"Attention", "MultiHeadAttention", "GroupQueryAttention"}
_PRODUCTS = {"MatMul", "Gemm"}


def detect_kind(model: Any) -> tuple[ModelKind, str]:
    """The kind of an onnx.ModelProto and why; the first rule that applies wins."""
    nodes = list(_all_nodes(model))
    counts = Counter(node.op_type for node in nodes)
    if found := sorted(_RECURRENT & set(counts)):
        return ModelKind.RECURRENT, f"{_counted(counts, found)} in the graph"
    if found := sorted(_ATTENTION & set(counts)):
        return ModelKind.TRANSFORMER, f"{_counted(counts, found)} in the graph"
    if counts["Softmax"] and (products := _activation_products(model)):
        return ModelKind.TRANSFORMER, f"{products} products of two activations beside {_counted(counts, ['Softmax'])}"
    if counts["Conv"]:
        return ModelKind.CNN, f"{_counted(counts, ['Conv'])} and no attention or recurrence in the graph"
    if found := sorted(_PRODUCTS & set(counts)):
        return ModelKind.MLP, f"only {_counted(counts, found)} hold weights"
    return ModelKind.OTHER, f"no Conv, MatMul, Gemm, attention or recurrence among {_counted(counts, sorted(counts)[:5])}"


def _counted(counts: Counter[str], names: list[str]) -> str:
    return ", ".join(f"{counts[name]} {name}" for name in names) or "no operators"


def _all_nodes(model: Any) -> Iterator[Any]:
    """Every node, those of sub-graphs and of the model's own functions included."""
    pending = [model.graph.node, *(function.node for function in model.functions)]
    while pending:
        for node in pending.pop():
            yield node
            pending.extend(attribute.g.node for attribute in node.attribute if attribute.HasField("g"))


def _activation_products(model: Any) -> int:
    """How many MatMul multiply two values that both depend on the input: attention's signature."""
    constant = {tensor.name for tensor in model.graph.initializer}
    products = 0
    for node in model.graph.node:  # in topological order, as ONNX demands
        if all(name in constant for name in node.input if name):
            constant.update(node.output)
        elif node.op_type == "MatMul" and not any(name in constant for name in node.input):
            products += 1
    return products
