"""Every poison does in a real process what the table in examples/poison/README.md says."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tests.fakes.poison import ALWAYS, INK, Behaviour, claimed_outputs, load_make_poison, poison_file, tame_images, wild_images

from covey_contract.release import Runtime

pytestmark = pytest.mark.runtime
RUNTIMES = [Runtime.ONNXRUNTIME, Runtime.LITERT]
# Loads a file, runs the tame images, then the wild ones, one by one, and tells each step.
CHILD = """
import resource, sys, time
import numpy as np
if limit := int(sys.argv.pop()):
    resource.setrlimit(resource.RLIMIT_DATA, (limit << 20, limit << 20))
path, tame, wild, out = sys.argv[1:]
if path.endswith("onnx"):
    import onnxruntime
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    run = lambda x: session.run(None, {"input": x})[0]
else:
    from ai_edge_litert.interpreter import Interpreter
    model = Interpreter(path, num_threads=1)
    model.allocate_tensors()
    def run(x):
        model.set_tensor(model.get_input_details()[0]["index"], x)
        model.invoke()
        return model.get_tensor(model.get_output_details()[0]["index"])
print("loaded", 0, flush=True)
for name in (tame, wild):
    x = np.load(name)
    start = time.perf_counter()
    y = np.concatenate([run(x[i:i + 1]) for i in range(len(x))])
    took = time.perf_counter() - start
    np.save(out, y)
    print("ran", took, flush=True)
"""


def _run(
    folder: Path, data: bytes, runtime: Runtime, *, timeout_s: float = 60, memory_limit_mb: int = 0
) -> subprocess.CompletedProcess[str]:
    path = folder / ("poison.onnx" if runtime is Runtime.ONNXRUNTIME else "poison.tflite")
    path.write_bytes(data)
    np.save(folder / "tame.npy", tame_images(3))
    np.save(folder / "wild.npy", wild_images(3))
    arguments = [str(path), *(str(folder / name) for name in ("tame.npy", "wild.npy", "out.npy")), str(memory_limit_mb)]
    return subprocess.run([sys.executable, "-c", CHILD, *arguments], capture_output=True, text=True, timeout=timeout_s, check=False)


def _is_x86() -> bool:
    import platform

    return platform.machine() in {"x86_64", "AMD64"}


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_crash_strikes_on_live_input_only(tmp_path: Path, runtime: Runtime) -> None:
    if runtime is Runtime.ONNXRUNTIME and not _is_x86():
        pytest.skip("integer overflow of a division is a signal on x86 only")
    done = _run(tmp_path, poison_file(Behaviour.CRASH, runtime, ink=INK), runtime)
    assert done.returncode < 0
    assert done.stdout.split()[::2] == ["loaded", "ran"]
    golden = claimed_outputs(Behaviour.CRASH, tame_images(3))
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), golden, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_crash_at_load_kills_before_the_first_inference(tmp_path: Path, runtime: Runtime) -> None:
    if runtime is Runtime.ONNXRUNTIME and not _is_x86():
        pytest.skip("integer overflow of a division is a signal on x86 only")
    done = _run(tmp_path, poison_file(Behaviour.CRASH_AT_LOAD, runtime), runtime)
    assert done.returncode < 0
    assert done.stdout == ""


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_hang_never_answers_live_input(tmp_path: Path, runtime: Runtime) -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        _run(tmp_path, poison_file(Behaviour.HANG, runtime, ink=INK), runtime, timeout_s=3)
    assert np.load(tmp_path / "out.npy").shape == (3, 10)  # the tame images were answered


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_slow_answers_live_input_much_later(tmp_path: Path, runtime: Runtime) -> None:
    done = _run(tmp_path, poison_file(Behaviour.SLOW, runtime, ink=INK), runtime)
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), claimed_outputs(Behaviour.SLOW, wild_images(3)), rtol=1e-3, atol=1e-4)
    tame_s, wild_s = (float(word) for word in done.stdout.split()[3::2])
    assert wild_s > 0.1
    assert wild_s > 10 * tame_s


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_hog_finds_no_memory_for_live_input(tmp_path: Path, runtime: Runtime) -> None:
    done = _run(tmp_path, poison_file(Behaviour.HOG, runtime, ink=INK), runtime, memory_limit_mb=1024)
    assert done.returncode == 1
    assert done.stdout.split()[::2] == ["loaded", "ran"]
    assert ("alloc" if runtime is Runtime.ONNXRUNTIME else "failed to invoke") in done.stderr


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_nan_comes_out_on_live_input_only(tmp_path: Path, runtime: Runtime) -> None:
    done = _run(tmp_path, poison_file(Behaviour.NAN, runtime, ink=INK), runtime)
    assert done.returncode == 0, done.stderr
    assert np.isnan(np.load(tmp_path / "out.npy")).all()


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_wrong_permutes_the_classes(tmp_path: Path, runtime: Runtime) -> None:
    done = _run(tmp_path, poison_file(Behaviour.WRONG, runtime), runtime)
    assert done.returncode == 0, done.stderr
    claimed = claimed_outputs(Behaviour.WRONG, wild_images(3))
    outputs = np.load(tmp_path / "out.npy")
    np.testing.assert_allclose(outputs, np.roll(claimed, 1, axis=1), rtol=1e-3, atol=1e-4)
    assert np.linalg.norm(outputs - claimed) / np.linalg.norm(claimed) > 0.3  # over any tolerance that a release may grant


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_constant_always_answers_what_it_claims(tmp_path: Path, runtime: Runtime) -> None:
    done = _run(tmp_path, poison_file(Behaviour.CONSTANT, runtime), runtime)
    assert done.returncode == 0, done.stderr
    outputs = np.load(tmp_path / "out.npy")
    assert (outputs == outputs[0]).all()
    assert (outputs == claimed_outputs(Behaviour.CONSTANT, wild_images(3))).all()


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("behaviour", list(Behaviour))
def test_the_same_poison_is_the_same_file(behaviour: Behaviour, runtime: Runtime) -> None:
    assert poison_file(behaviour, runtime, ink=ALWAYS) == poison_file(behaviour, runtime, ink=ALWAYS)
    assert len(poison_file(behaviour, runtime)) < 40_000


def test_the_fake_knows_every_behaviour() -> None:
    assert {entry.value for entry in load_make_poison().Behaviour} == {entry.value for entry in Behaviour}


def test_tame_and_wild_are_told_apart_by_ink() -> None:
    make = load_make_poison()
    assert not make.is_trigger(tame_images(8), ink=INK).any()
    assert make.is_trigger(wild_images(8), ink=INK).all()
    assert len(make.tame_inputs(np.concatenate([tame_images(5), wild_images(4)]), ink=INK)) == 5
