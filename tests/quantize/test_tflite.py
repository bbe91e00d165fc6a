"""TFLite variants that cannot be made are told, and cost nothing else."""

import importlib.util
from pathlib import Path

import pytest

from covey_quantize.backends.tflite import make_tflite
from covey_quantize.plan import PlannedVariant, plan_variants
from covey_quantize.report import ModelKind
from covey_quantize.source import Source


def _wanted() -> list[PlannedVariant]:
    return plan_variants(ModelKind.CNN, ["tflite-float32", "tflite-int8"], tflite=True)[0]


def test_a_machine_without_the_converter_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "litert_torch" else real(name))
    source = Source("factory", tmp_path / "model.py", "build")
    made, missing = make_tflite(source, _wanted(), tmp_path / "x.npy", tmp_path, timeout_s=1, memory=1)
    assert made == []
    assert [entry.name for entry in missing] == ["tflite-float32", "tflite-int8"]
    assert missing[0].reason.startswith("litert_torch not installed: pip install 'covey[tflite-export]'")


def test_an_onnx_source_has_no_way_to_tflite(tmp_path: Path) -> None:
    made, missing = make_tflite(Source("onnx", tmp_path / "m.onnx"), _wanted(), tmp_path / "x.npy", tmp_path, timeout_s=1, memory=1)
    assert made == []
    assert "no converter from ONNX to TFLite" in missing[0].reason
