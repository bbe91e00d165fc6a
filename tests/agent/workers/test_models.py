"""Real runtimes on tiny real models: loading, checking, probing, and what a broken or deadly artifact does."""

import re
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
from tests.fakes.children import Child
from tests.fakes.tiny_models import Int8, linear_onnx, linear_tflite
from tests.fakes.tiny_releases import Floats, fill_slot, make_release, make_variant, replace_variant

from covey_agent.core.jobs import CheckFailed, CheckJob, CheckPassed, Probed, ProbeJob
from covey_agent.workers.errors import ModelError
from covey_agent.workers.probe import try_apart
from covey_agent.workers.runtimes import load_model
from covey_agent.workers.runtimes.selftest import ONNX, TFLITE, run_selftest
from covey_contract.release import Release, Runtime

pytestmark = pytest.mark.runtime

WEIGHTS = np.array([[1, 2], [3, 4]], np.float32)
BIAS = np.array([0.5, -0.5], np.float32)
INPUTS = np.random.default_rng(3).normal(size=(8, 2)).astype(np.float32)
OUTPUTS: Floats = INPUTS @ WEIGHTS.T + BIAS
CLIPPED: Floats = INPUTS.clip(-1, 1) @ WEIGHTS.T + BIAS
MODELS: dict[Runtime, Callable[[Floats, Floats], bytes]] = {Runtime.ONNXRUNTIME: linear_onnx, Runtime.LITERT: linear_tflite}
RUNTIMES = pytest.mark.parametrize("runtime", list(MODELS), ids=lambda runtime: runtime.value)


def release(runtime: Runtime, data: bytes) -> Release:
    return make_release([make_variant(data, name="tiny-float32", runtime=runtime)], inputs=INPUTS, outputs=OUTPUTS)


def slot(tmp_path: Path, made: Release, data: bytes) -> Path:
    return fill_slot(tmp_path / "A", made, variant="tiny-float32", data=data)


def check(slot_dir: Path) -> CheckPassed | CheckFailed:
    with Child("check", CheckJob(slot_dir=str(slot_dir))) as child:
        (event,) = child.rest()
        assert child.process.returncode == 0, child.log
        assert isinstance(event, CheckPassed | CheckFailed)
        return event


@RUNTIMES
def test_a_model_answers_what_arithmetic_says(tmp_path: Path, runtime: Runtime) -> None:
    data = MODELS[runtime](WEIGHTS, BIAS)
    path = tmp_path / "model"
    path.write_bytes(data)
    model = load_model(path, release(runtime, data).variants[0], threads=1)
    np.testing.assert_allclose(model.run(INPUTS), OUTPUTS, rtol=1e-5, atol=1e-6)
    assert model.sample_shape == (2,)


@RUNTIMES
@pytest.mark.parametrize("damage", ["empty", "truncated", "noise"])
def test_a_file_that_is_no_model_is_an_error_and_no_crash(tmp_path: Path, runtime: Runtime, damage: str) -> None:
    data = MODELS[runtime](WEIGHTS, BIAS)
    broken = {"empty": b"", "truncated": data[:7], "noise": np.random.default_rng(1).bytes(300)}[damage]
    path = tmp_path / "model"
    path.write_bytes(broken)
    with pytest.raises(ModelError):
        load_model(path, release(runtime, data).variants[0], threads=1)


def test_a_runtime_that_is_not_installed_is_an_error(tmp_path: Path) -> None:
    variant = make_variant(b"x", runtime=Runtime.TFLITE_RUNTIME)
    with pytest.raises(ModelError, match="tflite_runtime is not usable here"):
        load_model(tmp_path / "model", variant, threads=1)


def test_an_input_that_the_manifest_names_differently_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "model"
    path.write_bytes(linear_onnx(WEIGHTS, BIAS))
    variant = make_variant(path.read_bytes())
    renamed = msgspec.structs.replace(variant, input=msgspec.structs.replace(variant.input, name="image"))
    with pytest.raises(ModelError, match="image"):
        load_model(path, renamed, threads=1)


# -- check -------------------------------------------------------------------------------------------------------------


@RUNTIMES
def test_a_right_model_passes_its_check(tmp_path: Path, runtime: Runtime) -> None:
    data = MODELS[runtime](WEIGHTS, BIAS)
    event = check(slot(tmp_path, release(runtime, data), data))
    assert isinstance(event, CheckPassed)
    assert event.relative_error < 1e-5
    assert 0 < event.latency_ms < 1000


def test_a_fully_int8_model_takes_and_gives_real_numbers(tmp_path: Path) -> None:
    quantized = Int8(input_scale=4 / 255, input_zero=-3, output_scale=24 / 255, output_zero=5)
    data = linear_tflite(WEIGHTS, BIAS, int8=quantized)
    made = make_release([make_variant(data, name="tflite-int8", runtime=Runtime.LITERT)], inputs=INPUTS.clip(-1, 1), outputs=CLIPPED)
    variant = made.variants[0]
    made = replace_variant(
        made,
        input=msgspec.structs.replace(variant.input, dtype="int8", scale=quantized.input_scale, zero_point=quantized.input_zero),
        output=msgspec.structs.replace(variant.output, dtype="int8", scale=quantized.output_scale, zero_point=quantized.output_zero),
        golden_tolerance=0.03,
    )
    event = check(fill_slot(tmp_path / "A", made, variant="tflite-int8", data=data))
    assert isinstance(event, CheckPassed), event
    assert 1e-4 < event.relative_error < 0.03  # really quantized, and really close


def failure(slot_dir: Path) -> str:
    event = check(slot_dir)
    assert isinstance(event, CheckFailed)
    return event.reason


def test_a_model_that_answers_wrongly_fails_its_check(tmp_path: Path) -> None:
    data = linear_onnx(WEIGHTS[::-1].copy(), BIAS)
    assert "relative error" in failure(slot(tmp_path, release(Runtime.ONNXRUNTIME, data), data))


def test_a_model_that_answers_nan_fails_its_check(tmp_path: Path) -> None:
    data = linear_onnx(WEIGHTS * np.float32(np.nan), BIAS)
    assert "NaN" in failure(slot(tmp_path, release(Runtime.ONNXRUNTIME, data), data))


def test_a_model_of_another_shape_fails_its_check(tmp_path: Path) -> None:
    data = linear_onnx(np.ones((2, 3), np.float32), BIAS)
    assert "cannot run" in failure(slot(tmp_path, release(Runtime.ONNXRUNTIME, data), data))


def test_golden_inputs_of_another_shape_fail_the_check(tmp_path: Path) -> None:
    data = linear_onnx(WEIGHTS, BIAS)
    made = replace_variant(release(Runtime.ONNXRUNTIME, data), input=make_variant(data, inputs=3).input)
    assert "golden inputs" in failure(slot(tmp_path, made, data))


def test_a_file_that_rotted_in_its_slot_fails_its_check(tmp_path: Path) -> None:
    data = linear_onnx(WEIGHTS, BIAS)
    slot_dir = slot(tmp_path, release(Runtime.ONNXRUNTIME, data), data)
    (slot_dir / "model.onnx").write_bytes(data[:-1] + b"\x00")
    assert "digest" in failure(slot_dir)


def test_an_empty_slot_fails_its_check(tmp_path: Path) -> None:
    assert "cannot be read" in failure(tmp_path / "nothing")


# -- probe -------------------------------------------------------------------------------------------------------------


def test_the_self_test_models_are_what_the_builders_make() -> None:
    assert linear_onnx(WEIGHTS, BIAS, batch=1) == ONNX
    assert linear_tflite(WEIGHTS, BIAS) == TFLITE


@RUNTIMES
def test_the_self_test_passes_on_a_working_runtime(runtime: Runtime) -> None:
    assert run_selftest(runtime)[0].isdigit()


def test_a_machine_is_probed() -> None:
    with Child("probe", ProbeJob()) as child:
        (event,) = child.rest(timeout_s=120)
    assert isinstance(event, Probed)
    assert {"onnxruntime", "litert"} <= set(event.capabilities.runtimes)
    assert "tflite_runtime" in event.findings
    assert event.capabilities.memory > 0
    assert event.capabilities.arch


def python(program: str) -> list[str]:
    return [sys.executable, "-c", program]


@pytest.mark.parametrize(
    ("program", "finding"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGILL)", "dies here by SIGILL"),
        ("import ctypes; ctypes.string_at(0)", "dies here by SIGSEGV"),
        ("raise RuntimeError('no such thing')", "exit code 1: .*no such thing"),
        ("import time; time.sleep(60)", "does not answer"),
    ],
)
def test_a_runtime_that_kills_its_process_is_a_finding(program: str, finding: str) -> None:
    usable, text = try_apart(python(program), timeout_s=1.0 if "sleep" in program else 30.0)
    assert not usable
    assert re.search(finding, text, re.DOTALL)
