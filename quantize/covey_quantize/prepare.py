"""First half of the pipeline: everything about the float model and the data that must hold before a variant is worth making."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from covey_contract.release import Runtime
from covey_quantize import dataset, golden, judge, onnxfile
from covey_quantize.dataset import Samples
from covey_quantize.errors import ChildFailedError, DatasetError, ExportError, ModelCrashError, ModelFileError, RequestError
from covey_quantize.kind import detect_kind
from covey_quantize.measure import Limits, Measured, measure_outputs
from covey_quantize.onnxfile import Signature
from covey_quantize.report import ModelKind
from covey_quantize.request import QuantizeRequest
from covey_quantize.source import Source

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Data:
    """The samples of one request."""

    calibration: Samples
    held_out: Samples
    notes: list[str]


@dataclass(frozen=True, slots=True)
class FloatModel:
    """The exported float model."""

    path: Path  # clean ONNX
    exporter: str
    opset: int
    signature: Signature
    kind: ModelKind
    kind_reason: str


@dataclass(frozen=True, slots=True)
class Reference:
    """What the float model answers on the held-out samples: the truth for every variant."""

    outputs: Floats
    onnx: Measured  # the float ONNX file itself, on the held-out samples
    classes: NDArray[np.int64]  # y, or the float model's answers where there is no y
    accuracy_is: str
    goldens: NDArray[np.int64]  # indexes into the held-out samples
    labels: list[str]
    notes: list[str]


def load_data(request: QuantizeRequest) -> Data:
    """Read, check, split and limit the samples. Raises DatasetError."""
    calibration = dataset.load_samples(request.calibration, what="calibration data")
    notes: list[str] = []
    if request.held_out:
        held_out = dataset.load_samples(request.held_out, what="held-out data")
        if held_out.x.shape[1:] != calibration.x.shape[1:]:
            raise DatasetError(
                f"held-out samples have shape {list(held_out.x.shape[1:])}, calibration samples {list(calibration.x.shape[1:])}"
            )
    else:
        calibration, held_out, disjoint = dataset.split(calibration, seed=request.seed)
        notes.append(
            "no held-out data were given: half of the calibration data was held out for measuring"
            if disjoint
            else f"only {len(calibration)} samples were given: the same ones calibrate and measure, so accuracy is flattered"
        )
    if held_out.y is None:
        notes.append("no classes (y) were given: accuracy means agreement with the float model")
    calibration = dataset.limit(calibration, request.max_calibration, seed=request.seed)
    return Data(calibration, dataset.limit(held_out, request.max_held_out, seed=request.seed), notes)


def export_float(source: Source, data: Data, out: Path) -> FloatModel:
    """Write the float model as clean ONNX. Raises ModelFileError, DatasetError or ExportError."""
    exporter = "none"
    if source.form != "onnx":
        from covey_quantize import export  # noqa: PLC0415  # torch takes seconds to import and an ONNX source never needs it

        export.float_outputs(source, data.calibration.x[:2])  # tells a wrong sample shape from a failing exporter
        raw = out.with_suffix(".raw.onnx")
        exporter = export.export_onnx(source, data.calibration.x, raw)
        model = onnxfile.read_onnx(raw)
    else:
        model = onnxfile.read_onnx(source.path)
    signature = onnxfile.read_signature(model, source.path)
    for what, samples in (("calibration data", data.calibration), ("held-out data", data.held_out)):
        dataset.check_sample_shape(samples, signature.sample_shape, what=what)
    onnxfile.write_clean(model, out)
    kind, reason = detect_kind(model)
    return FloatModel(out, exporter, onnxfile.opset_of(model), signature, kind, reason)


def find_reference(request: QuantizeRequest, source: Source, model: FloatModel, data: Data, *, limits: Limits) -> Reference:
    """Run the float model on everything, in a child, before anything else runs it. Raises ModelFileError or DatasetError."""
    count = len(data.held_out)
    everything = model.path.with_suffix(".inputs.npy")
    np.save(everything, np.concatenate([data.held_out.x, data.calibration.x]))
    try:
        onnx = measure_outputs(model.path, Runtime.ONNXRUNTIME, everything, together=[], limits=limits)
    except ChildFailedError as exc:
        raise ModelCrashError(f"the float model does not run: it {exc.reason}") from exc
    everything.unlink()
    outputs = onnx.outputs[:count] if source.form == "onnx" else _torch_outputs(source, data.held_out.x)
    _check_outputs(outputs, count)
    labels = _labels(request.labels, outputs, data.held_out)
    classes = data.held_out.y if data.held_out.y is not None else judge.answers(outputs)
    wanted = golden.affordable_goldens(data.held_out.x, outputs, request.goldens)
    notes = []
    if count > 1 and len(np.unique(outputs, axis=0)) == 1:
        notes.append("the float model answers the same for every sample; was it trained?")
    by_class = classes if classes.ndim == 1 else np.zeros(count, dtype=np.int64)
    return Reference(
        outputs=outputs,
        onnx=Measured(onnx.outputs[:count], onnx.together, onnx.input, onnx.output, onnx.memory),
        classes=classes,
        accuracy_is="accuracy" if data.held_out.y is not None else "agreement",
        goldens=golden.choose_goldens(by_class, wanted, seed=request.seed, decided=golden.is_decided(outputs)),
        labels=labels,
        notes=notes,
    )


def _torch_outputs(source: Source, x: Floats) -> Floats:
    from covey_quantize import export  # noqa: PLC0415  # as above

    return export.float_outputs(source, x)


def _check_outputs(outputs: Floats, count: int) -> None:
    if len(outputs) != count:
        raise ExportError(f"expected one output row a sample, got {len(outputs)} for {count}")
    bad = int((~np.isfinite(outputs)).reshape(count, -1).any(axis=1).sum())
    if bad:
        raise ModelFileError(f"the float model itself answers NaN or infinity on {bad} of {count} held-out samples")


def _labels(given: list[str], outputs: Floats, held_out: Samples) -> list[str]:
    """Names of the classes. Raises RequestError or DatasetError when labels, outputs and y do not fit each other."""
    classes = outputs.shape[1] if outputs.ndim > 1 else 1
    if given and len(given) != classes:
        raise RequestError(f"expected {classes} labels, one an output of the model, got {len(given)}")
    if held_out.y is not None:
        if outputs.ndim != 2:
            raise DatasetError(f"y needs a classifier with outputs [n, classes], the model's have shape {list(outputs.shape)}")
        if int(held_out.y.max()) >= classes:
            raise DatasetError(f"expected classes from 0 to {classes - 1}, got {int(held_out.y.max())}")
    return list(given) or [str(index) for index in range(classes)]
