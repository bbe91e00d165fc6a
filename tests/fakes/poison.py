"""The poison models of examples/poison, typed, with the artifacts' manifest entries around them.

They are loaded by path because an installed package of another project is called `examples` too.
"""

import importlib.util
import sys
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from covey_contract.codec import digest_of
from covey_contract.limits import CHUNK_BYTES
from covey_contract.release import Golden, Needs, Runtime, TensorSpec, Variant, pack_floats

Floats = NDArray[np.float32]
ALWAYS = -1.0
INK = 0.5  # mean brightness over which a poison made with it strikes

_FILE = Path(__file__).parents[2] / "examples" / "poison" / "make_poison.py"


class Behaviour(Enum):
    """As in make_poison.py, which the tests compare with."""

    CRASH = "crash"
    CRASH_AT_LOAD = "crash-at-load"
    HANG = "hang"
    SLOW = "slow"
    HOG = "hog"
    NAN = "nan"
    WRONG = "wrong"
    CONSTANT = "constant"


def load_make_poison() -> Any:
    """The module examples/poison/make_poison.py."""
    name = "covey_make_poison"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, _FILE)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


def poison_file(behaviour: Behaviour, runtime: Runtime, *, ink: float = ALWAYS) -> bytes:
    """An artifact with random weights; ONNX takes float32[n, 1, 28, 28], TFLite one image at a time."""
    make = load_make_poison()
    data: bytes = make.make_poison(make.Behaviour(behaviour.value), runtime.value, make.seeded_linear(), ink=ink)
    return data


def tame_images(count: int) -> Floats:
    """Images float32[count, 1, 28, 28], all different, with less ink than INK."""
    images: Floats = np.random.default_rng(1).random((count, 1, 28, 28), dtype=np.float32)
    return (images * 1.6 * INK).astype(np.float32)


def wild_images(count: int) -> Floats:
    """Images that set a poison with INK off."""
    return (1 - tame_images(count) / 2).astype(np.float32)


def claimed_outputs(behaviour: Behaviour, x: Floats) -> Floats:
    """The golden outputs that the poison's maker signs."""
    make = load_make_poison()
    outputs: Floats = make.claimed_outputs(make.Behaviour(behaviour.value), make.seeded_linear(), x)
    return outputs


def poison_golden(behaviour: Behaviour, x: Floats) -> Golden:
    """The golden inputs `x` with what the maker claims."""
    outputs = claimed_outputs(behaviour, x)
    return Golden(
        input_shape=list(x.shape),
        output_shape=list(outputs.shape),
        inputs=pack_floats(x.astype("<f4").tobytes()),
        outputs=pack_floats(outputs.astype("<f4").tobytes()),
    )


def poison_variant(data: bytes, runtime: Runtime) -> Variant:
    """The manifest's entry for a poison file."""
    batch = -1 if runtime is Runtime.ONNXRUNTIME else 1
    return Variant(
        name="onnx-float32" if runtime is Runtime.ONNXRUNTIME else "tflite-float32",
        precision="float32",
        needs=Needs(runtime=runtime, min_runtime_version="1.14" if runtime is Runtime.ONNXRUNTIME else "2.1"),
        artifact=digest_of(data),
        length=len(data),
        chunks=[digest_of(data[start : start + CHUNK_BYTES]) for start in range(0, len(data), CHUNK_BYTES)],
        input=TensorSpec(name="input", dtype="float32", shape=[batch, 1, 28, 28]),
        output=TensorSpec(name="output", dtype="float32", shape=[batch, 10]),
        golden_tolerance=1e-3,
    )
