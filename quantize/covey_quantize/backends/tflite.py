"""TFLite variants by litert-torch and ai-edge-quantizer, in a child process with a time and a memory limit.

The converter needs JAX, takes seconds to import, and may die on a model; whatever happens, ONNX variants still come out and the
report says why TFLite is missing.
"""

import importlib.util
from pathlib import Path

from msgspec import Struct

from covey_contract.release import Runtime
from covey_quantize.child import run_child
from covey_quantize.errors import ChildFailedError
from covey_quantize.plan import PlannedVariant
from covey_quantize.report import Missing
from covey_quantize.source import Source

_CHILD = "covey_quantize.backends.tflite_child"
_PACKAGES = ("litert_torch", "ai_edge_quantizer", "ai_edge_litert")
# What the agent's extra asks for. tflite-runtime 2.14 answers garbage on some of these files without an error, so it is never named.
MIN_RUNTIME_VERSION = "2.1"
MAX_CALIBRATION = 128  # samples; each is one interpreter run in Python


class TfliteFile(Struct, frozen=True):
    """One file to make."""

    recipe: str  # name of a Recipe
    out: str


class TfliteJob(Struct, frozen=True):
    """The whole job of the child."""

    form: str  # of the Source
    path: str
    factory: str
    weights: str
    calibration: str  # .npy
    max_calibration: int
    float_out: str  # where the float file is made, wanted or not
    files: list[TfliteFile]


class TfliteDone(Struct, frozen=True):
    """How each file went; "": made, otherwise why not."""

    outcomes: list[str]


def make_tflite(
    source: Source, planned: list[PlannedVariant], calibration: Path, directory: Path, *, timeout_s: float, memory: int
) -> tuple[list[PlannedVariant], list[Missing]]:
    """Make all planned TFLite files in one child. Returns those that exist now and, for the others, why they do not."""
    reason = _unavailable(source)
    if reason:
        return [], [Missing(variant.name, reason) for variant in planned]
    job = TfliteJob(
        form=source.form,
        path=str(source.path),
        factory=source.factory,
        weights=str(source.weights or ""),
        calibration=str(calibration),
        max_calibration=MAX_CALIBRATION,
        float_out=str(directory / "float.tflite"),
        files=[TfliteFile(variant.recipe.name, str(directory / variant.file)) for variant in planned],
    )
    try:
        done = run_child(_CHILD, job, TfliteDone, what="TFLite conversion", timeout_s=timeout_s, memory=memory)
    except ChildFailedError as exc:
        return [], [Missing(variant.name, str(exc)) for variant in planned]
    outcomes = list(zip(planned, done.outcomes, strict=True))
    return [v for v, why in outcomes if not why], [Missing(v.name, why) for v, why in outcomes if why]


def _unavailable(source: Source) -> str:
    if source.form == "onnx":
        return "there is no converter from ONNX to TFLite here; give the torch model (.pt2 or path.py:function) instead"
    absent = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if absent:
        return f"{', '.join(absent)} not installed: pip install 'covey[tflite-export]' (Linux x86-64 and macOS arm64)"
    return ""


def is_tflite(variant: PlannedVariant) -> bool:
    """Whether this backend makes the variant."""
    return variant.runtime is Runtime.LITERT
