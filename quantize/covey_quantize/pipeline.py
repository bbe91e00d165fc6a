"""The whole pipeline: load -> export -> quantize -> measure -> package.

    report = quantize_model(QuantizeRequest(model="model.pt2", calibration="data.npz", out="release"))

Nothing appears in the output directory before everything is done, and what is expensive starts only after everything cheap has
been checked.
"""

import importlib.metadata
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from covey_quantize import assess, judge, plan, prepare
from covey_quantize.backends import onnx, tflite
from covey_quantize.errors import ConversionError
from covey_quantize.golden import pack_golden
from covey_quantize.measure import Limits
from covey_quantize.package import check_output, publish, scratch_beside
from covey_quantize.plan import PlannedVariant
from covey_quantize.prepare import Data, FloatModel, Reference
from covey_quantize.report import SCHEMA_VERSION, Missing, QuantizeReport, VariantReport, encode_report
from covey_quantize.request import Listener, Progress, QuantizeRequest
from covey_quantize.source import Source, parse_source

_STEPS = 6
_TOOLS = ("torch", "onnx", "onnxruntime", "litert-torch", "ai-edge-quantizer", "ai-edge-litert", "numpy")


@dataclass
class _Journal:
    """Tells the listener which step begins and keeps how long each took."""

    listener: Listener
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def step(self, name: str, detail: str) -> Iterator[None]:
        """One step of the pipeline."""
        self.listener(Progress(name, detail, len(self.seconds), _STEPS))
        started = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - started, 3)


def quantize_model(request: QuantizeRequest, *, progress: Listener = lambda _: None) -> QuantizeReport:
    """Make, measure and package every variant of one model. Raises a QuantizeError; then `out` is as it was before."""
    plan.check_names(request.variants)
    out = Path(request.out)
    check_output(out)
    journal = _Journal(progress)
    limits = Limits(request.measure_timeout_s, request.measure_memory)
    with scratch_beside(out) as scratch:
        with journal.step("load", f"{request.model} and {request.calibration}"):
            source = parse_source(request.model, request.weights)
            data = prepare.load_data(request)
        with journal.step("export", "ONNX of the float model" if source.form != "onnx" else "checking the ONNX file"):
            model = prepare.export_float(source, data, scratch / "float.onnx")
            reference = prepare.find_reference(request, source, model, data, limits=limits)
        planned, missing = plan.plan_variants(model.kind, request.variants, tflite=request.tflite)
        with journal.step("quantize", f"{model.kind.value} ({model.kind_reason}), {len(data.calibration)} calibration samples"):
            made, failed = _make_onnx(planned, model, data, scratch)
            missing += failed
        with journal.step("tflite", "conversion in a child process"):
            made_tflite, failed = _make_tflite(request, planned, source, data, scratch)
            missing += failed
        with journal.step("measure", f"{len(made + made_tflite)} variants on {len(data.held_out)} held-out samples"):
            variants = _measured(request, made + made_tflite, data, reference, scratch, limits)
        with journal.step("package", str(out)):
            report = _report(request, source, data, model, reference, variants, missing, journal.seconds)
            files = {variant.file: scratch / variant.file for variant in report.accepted()}
            publish(files, encode_report(report), out, scratch)
    return report


def _make_onnx(planned: list[PlannedVariant], model: FloatModel, data: Data, scratch: Path) -> tuple[list[assess.Made], list[Missing]]:
    made: list[assess.Made] = []
    missing: list[Missing] = []
    for variant in planned:
        if tflite.is_tflite(variant):
            continue
        try:
            onnx.make_onnx(
                variant.recipe,
                model.path,
                scratch / variant.file,
                calibration=data.calibration.x,
                input_name=model.signature.input_name,
                dynamic_batch=model.signature.dynamic_batch,
            )
        except ConversionError as exc:
            missing.append(Missing(variant.name, str(exc)))
        else:
            made.append(assess.Made(variant, scratch / variant.file, model.path.stat().st_size))
    return made, missing


def _make_tflite(
    request: QuantizeRequest, planned: list[PlannedVariant], source: Source, data: Data, scratch: Path
) -> tuple[list[assess.Made], list[Missing]]:
    wanted = [variant for variant in planned if tflite.is_tflite(variant)]
    if not wanted:
        return [], []
    calibration = scratch / "calibration.npy"
    np.save(calibration, data.calibration.x)
    done, missing = tflite.make_tflite(
        source, wanted, calibration, scratch, timeout_s=request.tflite_timeout_s, memory=request.tflite_memory
    )
    float_file = scratch / "float.tflite"
    return [assess.Made(variant, scratch / variant.file, float_file.stat().st_size) for variant in done], missing


def _measured(
    request: QuantizeRequest, made: list[assess.Made], data: Data, reference: Reference, scratch: Path, limits: Limits
) -> list[VariantReport]:
    inputs = scratch / "held_out.npy"
    np.save(inputs, data.held_out.x)
    assessed = [assess.measure(entry, inputs, reference, limits=limits) for entry in made]
    assessed, latencies = assess.time_all(assessed, inputs, limits=limits)
    bounds = judge.Bounds(request.max_accuracy_drop, request.max_relative_error)
    return [assess.report_variant(entry, reference, bounds, latency_ms=latencies.get(entry.made.plan.name)) for entry in assessed]


def _report(
    request: QuantizeRequest,
    source: Source,
    data: Data,
    model: FloatModel,
    reference: Reference,
    variants: list[VariantReport],
    missing: list[Missing],
    seconds: dict[str, float],
) -> QuantizeReport:
    return QuantizeReport(
        schema=SCHEMA_VERSION,
        source=source.form,
        source_sha256=source.sha256,
        kind=model.kind,
        kind_reason=model.kind_reason,
        exporter=model.exporter,
        opset=model.opset,
        labels=reference.labels,
        accuracy_is=reference.accuracy_is,
        float_accuracy=judge.share_right(reference.outputs, reference.classes),
        calibration_samples=len(data.calibration),
        held_out_samples=len(data.held_out),
        variants=variants,
        missing=missing,
        golden=pack_golden(data.held_out.x[reference.goldens], reference.outputs[reference.goldens]),
        notes=[*data.notes, *reference.notes],
        tools=_tool_versions(),
        seconds=dict(seconds),
    )


def _tool_versions() -> dict[str, str]:
    versions = {}
    for name in _TOOLS:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions
