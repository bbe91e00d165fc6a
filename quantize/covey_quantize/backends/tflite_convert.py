"""torch -> TFLite -> int8, for the child process only: importing this file imports JAX and takes seconds.

The quantizer's own calibration is a moving average of minimum and maximum, which makes ranges far too small and clips outputs
(relative error 3.5 to 16 times larger, measured), so its calibrator runs here with the true minimum and maximum.
"""

from pathlib import Path
from typing import Any

import litert_torch
import numpy as np
import torch
from ai_edge_litert.interpreter import Interpreter
from ai_edge_quantizer import calibrator, quantizer, recipe_manager
from ai_edge_quantizer import recipe as recipes

from covey_quantize.backends.tflite import TfliteFile, TfliteJob
from covey_quantize.errors import ConversionError, translate
from covey_quantize.module import load_module
from covey_quantize.plan import Recipe
from covey_quantize.source import Source


def convert_all(job: TfliteJob) -> list[str]:
    """Make every file of the job; per file why it failed, or ""."""
    calibration = np.load(job.calibration)[: job.max_calibration]
    try:
        _convert(job, calibration[:1])
    except ConversionError as exc:
        return [str(exc)] * len(job.files)
    return [_make(file, Path(job.float_out), calibration) for file in job.files]


def _convert(job: TfliteJob, sample: Any) -> None:
    """The float file. The batch is fixed at one: litert-torch fails on a dynamic one."""
    torch.set_num_threads(1)
    with translate(ConversionError, "TFLite conversion failed"):
        module = load_module(Source(job.form, Path(job.path), job.factory, Path(job.weights) if job.weights else None))
        litert_torch.convert(module, (torch.from_numpy(sample),)).export(job.float_out)


def _make(file: TfliteFile, source: Path, calibration: Any) -> str:
    """Write one variant; returns why it failed, or ""."""
    try:
        with translate(ConversionError, f"TFLite {file.recipe.lower()} failed"):
            if Recipe[file.recipe] is Recipe.FLOAT32:
                Path(file.out).write_bytes(source.read_bytes())
            else:
                _quantize(source, Path(file.out), Recipe[file.recipe], calibration)
    except ConversionError as exc:
        return str(exc)
    return ""


def _quantize(source: Path, out: Path, recipe: Recipe, calibration: Any) -> None:
    steps = {Recipe.STATIC_INT8: recipes.static_wi8_ai8, Recipe.DYNAMIC_INT8: recipes.dynamic_wi8_afp32}[recipe]()
    worker = quantizer.Quantizer(str(source))
    worker.load_quantization_recipe(steps)
    ranges = _true_ranges(source, steps, calibration) if worker.need_calibration else None
    worker.quantize(ranges).export_model(str(out), overwrite=True)
    out.chmod(0o644)  # the exporter marks it executable


def _true_ranges(source: Path, steps: Any, calibration: Any) -> Any:
    rules = recipe_manager.RecipeManager()
    rules.load_quantization_recipe(steps)
    signature, tensors = next(iter(Interpreter(str(source)).get_signature_list().items()))
    samples = [{tensors["inputs"][0]: calibration[i : i + 1]} for i in range(len(calibration))]
    watcher = calibrator.Calibrator(str(source), num_threads=1, qsv_update_func=_widest)
    watcher.calibrate({signature: samples}, rules)
    return watcher.get_model_qsvs()


def _widest(known: Any, new: Any) -> Any:
    """The range that holds both."""
    if not known:
        return new
    return {**known, "min": np.minimum(known["min"], new["min"]), "max": np.maximum(known["max"], new["max"])}
