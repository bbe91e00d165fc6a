"""The whole pipeline on real runtimes: as a command, as the server's worker, and from Python."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from tests.fakes.services import require
from tests.fakes.tiny_models import linear_onnx
from tests.quantize.conftest import DigitFiles

from covey_agent.workers.golden import compare, read_golden
from covey_agent.workers.runtimes import load_model
from covey_contract.codec import digest_of, encode
from covey_contract.release import Bounds, Golden, Lineage, Release, Runtime, unpack_floats
from covey_quantize.pipeline import quantize_model
from covey_quantize.release import to_release_golden, to_release_variants
from covey_quantize.report import ModelKind, QuantizeReport, VariantReport, decode_report
from covey_quantize.request import Progress, QuantizeRequest
from covey_quantize.worker import Finished, decode_line

pytestmark = pytest.mark.runtime
ALL_FILES = ["onnx-float32.onnx", "onnx-int8.onnx", "report.json", "tflite-float32.tflite", "tflite-int8.tflite"]


def _command(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "covey_quantize.cli", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=240, check=False)


def _arguments(digits: DigitFiles, out: Path) -> list[str]:
    data = ["--calibration", digits.calibration, "--held-out", digits.held_out]
    return [digits.cnn, "--weights", digits.cnn_weights, *data, "--out", str(out)]


@pytest.fixture(scope="module")
def release(digits: DigitFiles, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """What the command made of the CNN, and what it said."""
    pytest.importorskip("onnxruntime")
    for package in ("litert_torch", "ai_edge_quantizer"):
        require(_is_installed(package), package)
    out = tmp_path_factory.mktemp("release") / "out"
    return out, _command(*_arguments(digits, out))


def _is_installed(package: str) -> bool:
    from importlib.util import find_spec

    return find_spec(package) is not None


def _report(out: Path) -> QuantizeReport:
    return decode_report((out / "report.json").read_bytes())


def _named(report: QuantizeReport) -> dict[str, VariantReport]:
    return {variant.name: variant for variant in report.variants}


def test_the_command_writes_every_variant_and_says_so(release: tuple[Path, Any]) -> None:
    out, said = release
    assert said.returncode == 0, said.stderr
    assert sorted(path.name for path in out.iterdir()) == ALL_FILES
    assert [path.name for path in out.parent.iterdir()] == ["out"]  # no scratch is left
    assert "tflite-int8" in said.stdout
    assert "6/6 package" in said.stderr
    assert "Warning" not in said.stderr


def test_int8_is_small_and_as_good_as_float(release: tuple[Path, Any]) -> None:
    report = _report(release[0])
    variants = _named(report)
    assert report.kind is ModelKind.CNN
    assert report.float_accuracy > 0.9
    for name in ("onnx-int8", "tflite-int8"):
        assert variants[name].accepted, variants[name].reason
        assert variants[name].size_ratio > 3
        assert (variants[name].relative_error or 1) < 0.05
        assert abs(variants[name].accuracy_drop or 0) <= 0.01
    for name in ("onnx-float32", "tflite-float32"):
        assert (variants[name].relative_error or 0) < 1e-5


def test_the_report_describes_the_files(release: tuple[Path, Any]) -> None:
    out, _ = release
    for variant in _report(out).variants:
        data = (out / variant.file).read_bytes()
        assert (variant.sha256, variant.length) == (digest_of(data), len(data))
        assert variant.memory > 10_000_000
        assert (variant.latency_ms or 0) > 0


def test_a_static_tflite_file_tells_how_to_quantize_its_input(release: tuple[Path, Any]) -> None:
    spec = _named(_report(release[0]))["tflite-int8"].input
    assert (spec.dtype, spec.shape) == ("int8", [1, 1, 8, 8])
    # Images are 0..1: 255 steps, from the lowest integer on.
    assert spec.scale == pytest.approx(1 / 255, rel=1e-3)
    assert spec.zero_point == -128


def test_onnx_takes_any_batch_and_carries_no_trace_of_this_machine(release: tuple[Path, Any]) -> None:
    out, _ = release
    assert _named(_report(out))["onnx-int8"].input.shape == [-1, 1, 8, 8]
    for name in ("onnx-float32.onnx", "onnx-int8.onnx"):
        data = (out / name).read_bytes()
        assert b"site-packages" not in data
        assert b"digits_models" not in data
        onnx.checker.check_model(onnx.load_model_from_string(data))


def test_goldens_are_held_out_samples_of_every_class_with_the_float_answers(release: tuple[Path, Any], digits: DigitFiles) -> None:
    import torch
    from safetensors.torch import load_file
    from tests.quantize.digits_models import build_cnn

    golden = _report(release[0]).golden
    x, outputs = _unpacked(golden)
    with np.load(digits.held_out) as held_out:
        known = {row.tobytes(): int(label) for row, label in zip(held_out["x"], held_out["y"], strict=True)}
    assert {known[row.tobytes()] for row in x} == set(range(10))
    model = build_cnn().eval()
    model.load_state_dict(load_file(digits.cnn_weights))
    with torch.no_grad():
        expected = model(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-5)


def _unpacked(golden: Golden) -> tuple[Any, Any]:
    x = np.frombuffer(unpack_floats(golden.inputs), "<f4").reshape(golden.input_shape)
    return x.copy(), np.frombuffer(unpack_floats(golden.outputs), "<f4").reshape(golden.output_shape)


def test_the_variants_make_a_release_manifest(release: tuple[Path, Any]) -> None:
    out, _ = release
    report = _report(out)
    manifest = Release(
        model="digits",
        version=1,
        created_at=0,
        labels=report.labels,
        variants=to_release_variants(report, out),
        golden=to_release_golden(report),
        bounds=Bounds(),
        lineage=Lineage(source="import"),
    )
    assert len(encode(manifest)) < 200_000
    assert manifest.variants[0].precision == "int8"
    assert {variant.needs.runtime for variant in manifest.variants} == {Runtime.ONNXRUNTIME, Runtime.LITERT}


@pytest.mark.parametrize("name", ["onnx-float32", "onnx-int8", "tflite-float32", "tflite-int8"])
def test_a_device_s_golden_check_passes_every_variant(release: tuple[Path, Any], name: str) -> None:
    out, _ = release
    report = _report(out)
    variant = next(variant for variant in to_release_variants(report, out) if variant.name == name)
    inputs, expected = read_golden(report.golden)
    answers = load_model(out / _named(report)[name].file, variant, threads=1).run(inputs)
    assert compare(answers, expected, labels=10, tolerance=variant.golden_tolerance) <= variant.golden_tolerance / 2


def test_the_worker_makes_the_same_bytes_in_another_place(release: tuple[Path, Any], digits: DigitFiles, tmp_path: Path) -> None:
    """Also what the server sees: one request line in, progress lines and a final line out."""
    request = {
        "model": digits.cnn,
        "weights": digits.cnn_weights,
        "calibration": digits.calibration,
        "held_out": digits.held_out,
        "out": "again/deeper",
    }
    done = subprocess.run(
        [sys.executable, "-m", "covey_quantize.worker"],
        input=json.dumps(request).encode() + b"\n",
        cwd=tmp_path,
        capture_output=True,
        timeout=240,
        check=False,
    )
    *steps, last = [decode_line(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0
    assert [step.step for step in steps if isinstance(step, Progress)] == ["load", "export", "quantize", "tflite", "measure", "package"]
    assert isinstance(last, Finished)
    assert last.report == _report(tmp_path / "again" / "deeper")
    first, again = _named(_report(release[0])), _named(last.report)
    assert {name: variant.sha256 for name, variant in again.items()} == {name: variant.sha256 for name, variant in first.items()}
    assert last.report.golden == _report(release[0]).golden


def test_a_variant_over_the_budget_is_refused_and_not_written(tmp_path: Path) -> None:
    chance = np.random.default_rng(0)
    weights = chance.standard_normal((10, 64)).astype(np.float32)
    (tmp_path / "model.onnx").write_bytes(linear_onnx(weights, np.zeros(10, np.float32)))
    np.savez(tmp_path / "data.npz", x=chance.random((60, 64), dtype=np.float32))
    out = tmp_path / "out"
    source = [str(tmp_path / "model.onnx"), "--calibration", str(tmp_path / "data.npz"), "--out", str(out)]
    said = _command(*source, "--max-relative-error", "0.000001", "--json")
    assert said.returncode == 3
    report = _report(out)
    assert json.loads(said.stdout) == json.loads((out / "report.json").read_bytes())
    refused = _named(report)["onnx-int8"]
    assert not refused.accepted
    assert refused.reason.startswith("relative error")
    assert sorted(path.name for path in out.iterdir()) == ["onnx-float32.onnx", "report.json"]
    # The source is ONNX, for which there is no TFLite converter; neither held-out data nor classes were given. All is said.
    assert {entry.name for entry in report.missing} == {"tflite-float32", "tflite-int8"}
    assert "no converter from ONNX" in report.missing[0].reason
    assert report.accuracy_is == "agreement"
    assert any("held out for measuring" in note for note in report.notes)


def test_a_recurrent_model_becomes_float16_and_onnx_survives_a_tflite_timeout(digits: DigitFiles, tmp_path: Path) -> None:
    request = QuantizeRequest(model=digits.gru, calibration=digits.calibration, out=str(tmp_path / "out"), tflite_timeout_s=0.3)
    report = quantize_model(request)
    assert report.kind is ModelKind.RECURRENT
    assert [variant.name for variant in report.accepted()] == ["onnx-float32", "onnx-float16"]
    assert _named(report)["onnx-float16"].size_ratio > 1.5
    reasons = {entry.name: entry.reason for entry in report.missing}
    assert "float16 is made in its place" in reasons["onnx-int8"]
    assert "took longer than 0.3 s" in reasons["tflite-int8"]


def test_an_mlp_program_is_quantized_dynamically_and_onnx_survives_a_tflite_memory_limit(digits: DigitFiles, tmp_path: Path) -> None:
    if sys.platform != "linux":
        pytest.skip("memory of a child is watched on Linux only")
    request = QuantizeRequest(
        model=digits.mlp_program, calibration=digits.calibration, out=str(tmp_path / "out"), labels=list("abcdefghij"), tflite_memory=2**20
    )
    report = quantize_model(request)
    int8 = _named(report)["onnx-int8"]
    assert report.kind is ModelKind.MLP
    assert int8.accepted, int8.reason
    assert int8.recipe.startswith("dynamic")
    assert int8.size_ratio > 2.5
    assert report.labels == list("abcdefghij")
    assert all("1 MiB are allowed" in entry.reason for entry in report.missing)
