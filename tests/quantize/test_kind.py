"""A model's kind is read off its operators."""

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from covey_quantize.kind import detect_kind
from covey_quantize.report import ModelKind


def _model(*nodes: Any) -> Any:
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])
    weight = numpy_helper.from_array(np.zeros((4, 4), np.float32), "w")
    graph = helper.make_graph(list(nodes), "g", [value], [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)], [weight])
    return helper.make_model(graph)


def _node(operator: str, *inputs: str, **attributes: Any) -> Any:
    return helper.make_node(operator, list(inputs), ["y"], **attributes)


def _inside_if(node: Any) -> Any:
    branch = helper.make_graph([node], "branch", [], [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)])
    return helper.make_node("If", ["x"], ["y"], then_branch=branch, else_branch=branch)


@pytest.mark.parametrize(
    ("model", "kind"),
    [
        (_model(_node("Gemm", "x", "w")), ModelKind.MLP),
        (_model(_node("MatMul", "x", "w"), _node("Softmax", "y")), ModelKind.MLP),
        (_model(_node("Transpose", "w"), _node("MatMul", "x", "y"), _node("Softmax", "y")), ModelKind.MLP),
        (_model(_node("Conv", "x", "w"), _node("Gemm", "y", "w"), _node("Softmax", "y")), ModelKind.CNN),
        (_model(_node("Conv", "x", "w"), _node("MatMul", "x", "x"), _node("Softmax", "y")), ModelKind.TRANSFORMER),
        (_model(_node("MultiHeadAttention", "x", "x", "x")), ModelKind.TRANSFORMER),
        (_model(_node("Conv", "x", "w"), _node("GRU", "x", "w", "w")), ModelKind.RECURRENT),
        (_model(_inside_if(_node("LSTM", "x", "w", "w"))), ModelKind.RECURRENT),
        (_model(_node("Relu", "x")), ModelKind.OTHER),
    ],
)
def test_operators_decide_the_kind(model: Any, kind: ModelKind) -> None:
    found, reason = detect_kind(model)
    assert found is kind
    assert reason


def test_the_reason_counts_what_decided() -> None:
    _, reason = detect_kind(_model(_node("Conv", "x", "w"), _node("Conv", "y", "w")))
    assert reason.startswith("2 Conv")
