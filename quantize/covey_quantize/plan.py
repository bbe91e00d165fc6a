"""Which variants are made and how, by the model's kind. Pure: the table below is the whole policy.

Why (all measured, see docs/quantization.md): dynamic quantization of Conv is 5 to 13 times slower; static int8 of small MLPs and
transformers is slower and less exact than dynamic; ONNX Runtime quantizes no GRU or LSTM, so a recurrent model becomes float16.
"""

from dataclasses import dataclass
from enum import Enum

from covey_contract.release import Runtime
from covey_quantize.errors import RequestError, UnknownVariantError
from covey_quantize.report import Missing, ModelKind


class Recipe(Enum):
    """How one variant is made from the float model."""

    FLOAT32 = "as exported"
    FLOAT16 = "weights and arithmetic in float16, inputs and outputs float32"
    STATIC_INT8 = "static int8: 8-bit activations with ranges from calibration (true minimum and maximum), per-channel weights"
    DYNAMIC_INT8 = "dynamic int8: 8-bit weights, activation ranges found at run time"


@dataclass(frozen=True, slots=True)
class PlannedVariant:
    """One file to make."""

    name: str
    runtime: Runtime
    precision: str
    recipe: Recipe

    @property
    def file(self) -> str:
        """The file's name in the output directory."""
        return f"{self.name}.{'onnx' if self.runtime is Runtime.ONNXRUNTIME else 'tflite'}"


ONNX_FLOAT32, ONNX_FLOAT16, ONNX_INT8 = "onnx-float32", "onnx-float16", "onnx-int8"
TFLITE_FLOAT32, TFLITE_INT8 = "tflite-float32", "tflite-int8"
KNOWN = (ONNX_FLOAT32, ONNX_FLOAT16, ONNX_INT8, TFLITE_FLOAT32, TFLITE_INT8)

_INT8 = {  # kind: (ONNX, TFLite); None: not in this precision
    ModelKind.CNN: (Recipe.STATIC_INT8, Recipe.STATIC_INT8),
    ModelKind.MLP: (Recipe.DYNAMIC_INT8, Recipe.DYNAMIC_INT8),
    ModelKind.TRANSFORMER: (Recipe.DYNAMIC_INT8, Recipe.DYNAMIC_INT8),
    ModelKind.RECURRENT: (None, Recipe.DYNAMIC_INT8),
    ModelKind.OTHER: (None, None),
}
_NO_INT8 = {
    ModelKind.RECURRENT: "ONNX Runtime has no int8 kernel for recurrent layers; float16 is made in its place",
    ModelKind.OTHER: "the model has no layer that a quantizer knows; it is shipped as float32",
}


def check_names(names: list[str]) -> None:
    """Raise UnknownVariantError or RequestError unless every wanted variant exists and is named once."""
    for name in names:
        if name not in KNOWN:
            raise UnknownVariantError(name, KNOWN)
    if len(set(names)) != len(names):
        raise RequestError(f"each variant may be named once, got {', '.join(names)}")


def plan_variants(kind: ModelKind, wanted: list[str], *, tflite: bool) -> tuple[list[PlannedVariant], list[Missing]]:
    """What to make for `wanted` (empty: everything that suits the kind), and what is left out, with the reason."""
    names = list(wanted) or [name for name in KNOWN if name != ONNX_FLOAT16]
    planned: dict[str, PlannedVariant] = {}
    missing: list[Missing] = []
    for name in names:
        is_tflite = name.startswith("tflite-")
        if is_tflite and not tflite:
            if wanted:  # left out by default it needs no mention
                missing.append(Missing(name, "TFLite was switched off by the request"))
            continue
        recipe = _recipe(kind, name)
        if recipe is None:
            missing.append(Missing(name, _NO_INT8[kind]))
            if kind is ModelKind.RECURRENT:
                planned.setdefault(ONNX_FLOAT16, _planned(ONNX_FLOAT16, Recipe.FLOAT16))
            continue
        planned[name] = _planned(name, recipe)
    return [planned[name] for name in KNOWN if name in planned], missing


def _recipe(kind: ModelKind, name: str) -> Recipe | None:
    match name:
        case "onnx-float32" | "tflite-float32":
            return Recipe.FLOAT32
        case "onnx-float16":
            return Recipe.FLOAT16
        case "onnx-int8":
            return _INT8[kind][0]
        case "tflite-int8":
            return _INT8[kind][1]
        case _:
            raise UnknownVariantError(name, KNOWN)


def _planned(name: str, recipe: Recipe) -> PlannedVariant:
    runtime = Runtime.LITERT if name.startswith("tflite-") else Runtime.ONNXRUNTIME
    return PlannedVariant(name, runtime, name.split("-", 1)[1], recipe)
