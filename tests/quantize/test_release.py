"""A report becomes the variants of a release manifest."""

from pathlib import Path

import msgspec
import pytest

from covey_contract.codec import digest_of
from covey_contract.limits import CHUNK_BYTES
from covey_contract.release import Golden, Runtime, TensorSpec
from covey_quantize.errors import OutputDirectoryError
from covey_quantize.release import to_release_variants
from covey_quantize.report import ModelKind, QuantizeReport, VariantReport, decode_report, encode_report

DATA = bytes(range(256)) * 300  # one whole chunk and a part


def _variant(name: str, data: bytes, *, accepted: bool = True) -> VariantReport:
    spec = TensorSpec(name="input", dtype="int8", shape=[1, 4], scale=0.5, zero_point=-3)
    return VariantReport(
        name=name,
        precision="float32" if "float32" in name else "int8",
        recipe="by hand",
        runtime=Runtime.LITERT,
        min_runtime_version="2.1",
        file=f"{name}.tflite" if accepted else "",
        sha256=digest_of(data),
        length=len(data),
        input=spec,
        output=spec,
        accuracy=0.9,
        accuracy_drop=0.01,
        relative_error=0.02,
        latency_ms=1.5,
        memory=7_000_000,
        size_ratio=3.5,
        golden_error=0.02,
        golden_tolerance=0.08,
        accepted=accepted,
        reason="" if accepted else "too bad",
    )


def _report(*variants: VariantReport) -> QuantizeReport:
    return QuantizeReport(
        schema=1,
        source="onnx",
        source_sha256=digest_of(b"model"),
        kind=ModelKind.CNN,
        kind_reason="2 Conv",
        exporter="none",
        opset=18,
        labels=["a", "b"],
        accuracy_is="accuracy",
        float_accuracy=0.91,
        calibration_samples=10,
        held_out_samples=20,
        variants=list(variants),
        missing=[],
        golden=Golden(input_shape=[1, 4], output_shape=[1, 2], inputs="", outputs=""),
    )


def test_a_report_survives_its_file() -> None:
    report = _report(_variant("tflite-int8", DATA))
    assert decode_report(encode_report(report)) == report


def test_variants_carry_what_a_device_checks(tmp_path: Path) -> None:
    (tmp_path / "tflite-int8.tflite").write_bytes(DATA)
    (variant,) = to_release_variants(_report(_variant("tflite-int8", DATA)), tmp_path)
    assert variant.artifact == digest_of(DATA)
    assert variant.chunks == [digest_of(DATA[:CHUNK_BYTES]), digest_of(DATA[CHUNK_BYTES:])]
    assert variant.input.scale == 0.5
    assert variant.needs.memory == 7_000_000
    assert variant.quality is not None
    assert variant.quality.samples == 20


def test_refused_variants_are_left_out_and_small_ones_come_first(tmp_path: Path) -> None:
    (tmp_path / "tflite-float32.tflite").write_bytes(DATA)
    (tmp_path / "tflite-int8.tflite").write_bytes(DATA[:100])
    report = _report(_variant("tflite-float32", DATA), _variant("onnx-int8", DATA, accepted=False), _variant("tflite-int8", DATA[:100]))
    assert [variant.name for variant in to_release_variants(report, tmp_path)] == ["tflite-int8", "tflite-float32"]


@pytest.mark.parametrize("content", [None, DATA[:-1], DATA[:-1] + b"?"])
def test_a_file_that_changed_since_it_was_measured_is_refused(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "tflite-int8.tflite").write_bytes(content)
    with pytest.raises(OutputDirectoryError):
        to_release_variants(_report(_variant("tflite-int8", DATA)), tmp_path)


def test_the_budget_is_about_reduced_variants() -> None:
    good_float, bad_int8 = _variant("tflite-float32", DATA), _variant("tflite-int8", DATA, accepted=False)
    assert not _report(good_float, bad_int8).is_within_budget()
    assert _report(good_float, _variant("tflite-int8", DATA)).is_within_budget()
    assert _report(good_float).is_within_budget()
    assert not _report(msgspec.structs.replace(good_float, accepted=False)).is_within_budget()
