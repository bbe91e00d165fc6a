"""The kind of the model decides how it is quantized."""

import pytest

from covey_quantize.errors import RequestError, UnknownVariantError
from covey_quantize.plan import Recipe, check_names, plan_variants
from covey_quantize.report import ModelKind


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (ModelKind.CNN, {"onnx-int8": Recipe.STATIC_INT8, "tflite-int8": Recipe.STATIC_INT8}),
        (ModelKind.MLP, {"onnx-int8": Recipe.DYNAMIC_INT8, "tflite-int8": Recipe.DYNAMIC_INT8}),
        (ModelKind.TRANSFORMER, {"onnx-int8": Recipe.DYNAMIC_INT8, "tflite-int8": Recipe.DYNAMIC_INT8}),
        (ModelKind.RECURRENT, {"onnx-float16": Recipe.FLOAT16, "tflite-int8": Recipe.DYNAMIC_INT8}),
        (ModelKind.OTHER, {}),
    ],
)
def test_each_kind_has_its_recipes(kind: ModelKind, expected: dict[str, Recipe]) -> None:
    planned, _ = plan_variants(kind, [], tflite=True)
    floats = {"onnx-float32": Recipe.FLOAT32, "tflite-float32": Recipe.FLOAT32}
    assert {variant.name: variant.recipe for variant in planned} == floats | expected


def test_a_recurrent_model_becomes_float16_with_the_reason_told() -> None:
    planned, missing = plan_variants(ModelKind.RECURRENT, ["onnx-int8"], tflite=True)
    assert [variant.file for variant in planned] == ["onnx-float16.onnx"]
    assert missing[0].name == "onnx-int8"
    assert "float16 is made in its place" in missing[0].reason


def test_only_what_was_asked_for_is_made() -> None:
    planned, missing = plan_variants(ModelKind.CNN, ["tflite-int8", "onnx-float16"], tflite=True)
    assert [variant.name for variant in planned] == ["onnx-float16", "tflite-int8"]
    assert missing == []


def test_tflite_that_was_asked_for_and_switched_off_is_told() -> None:
    planned, missing = plan_variants(ModelKind.CNN, ["onnx-int8", "tflite-int8"], tflite=False)
    assert [variant.name for variant in planned] == ["onnx-int8"]
    assert [entry.name for entry in missing] == ["tflite-int8"]
    assert plan_variants(ModelKind.CNN, [], tflite=False)[1] == []


def test_unknown_and_repeated_names_are_refused() -> None:
    check_names(["onnx-int8"])
    with pytest.raises(UnknownVariantError, match="unknown variant 'onnx-int4'; expected one of onnx-float32, "):
        check_names(["onnx-int4"])
    with pytest.raises(RequestError, match="named once"):
        check_names(["onnx-int8", "onnx-int8"])
