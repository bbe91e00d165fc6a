"""Which variant a device runs, and what it says about it."""

import msgspec
import numpy as np
import pytest
from tests.fakes.tiny_releases import make_release, make_variant

from covey_agent.workers.choose import choose_variant, find_obstacle
from covey_agent.workers.errors import RefusedError
from covey_contract.limits import MAX_REASON_CHARS
from covey_contract.messages import Capabilities
from covey_contract.release import Needs, Quality, Release, Runtime, Variant

BOTH = Capabilities(arch="aarch64", cpu_flags=["asimd", "asimddp"], memory=1 << 30, runtimes={"onnxruntime": "1.31.1", "litert": "2.3.0"})
ONNX_ONLY = msgspec.structs.replace(BOTH, runtimes={"onnxruntime": "1.31.1"})


def variant(name: str, length: int, *, latency_ms: float = 1.0, drop: float = 0.0, needs: Needs | None = None) -> Variant:
    runtime = Runtime.LITERT if name.startswith("tflite") else Runtime.ONNXRUNTIME
    return msgspec.structs.replace(
        make_variant(b"x", name=name),
        length=length,
        needs=needs or Needs(runtime=runtime, min_runtime_version="2.1" if runtime is Runtime.LITERT else "1.23"),
        quality=Quality(accuracy=0.9 - drop, accuracy_drop=drop, relative_error=0.01, latency_ms=latency_ms, samples=100),
    )


def release(*variants: Variant) -> Release:
    return make_release(variants, inputs=np.zeros((1, 2), np.float32), outputs=np.zeros((1, 2), np.float32))


FOUR = (variant("onnx-float32", 400), variant("onnx-float16", 200), variant("onnx-int8", 110), variant("tflite-int8", 100))


def chosen(capabilities: Capabilities, *variants: Variant) -> str:
    return choose_variant(release(*variants), capabilities).variant.name


def test_int8_comes_before_float16_before_float32() -> None:
    assert chosen(ONNX_ONLY, *FOUR) == "onnx-int8"
    assert chosen(ONNX_ONLY, *FOUR[:2]) == "onnx-float16"
    assert chosen(ONNX_ONLY, FOUR[0]) == "onnx-float32"


def test_of_one_precision_accuracy_decides_first_then_latency_then_size() -> None:
    worse = variant("onnx-int8", 50, latency_ms=0.1, drop=0.03)
    assert chosen(BOTH, worse, variant("tflite-int8", 100)) == "tflite-int8"
    assert chosen(BOTH, variant("onnx-int8", 50, latency_ms=2.0), variant("tflite-int8", 100)) == "tflite-int8"
    assert chosen(BOTH, variant("onnx-int8", 50), variant("tflite-int8", 100)) == "onnx-int8"


def test_a_difference_in_accuracy_that_is_noise_decides_nothing() -> None:
    assert chosen(BOTH, variant("onnx-int8", 100, drop=0.001, latency_ms=1.0), variant("tflite-int8", 100, latency_ms=2.0)) == "onnx-int8"


def test_a_measured_variant_comes_before_one_that_was_not() -> None:
    unmeasured = msgspec.structs.replace(variant("onnx-int8", 10), quality=None)
    assert chosen(BOTH, unmeasured, variant("tflite-int8", 100, drop=0.4)) == "tflite-int8"


def test_the_reason_says_what_did_not_fit() -> None:
    reason = choose_variant(release(*FOUR), ONNX_ONLY).reason
    assert reason == "onnx-int8: smallest of 3 that fit (tflite-int8 needs litert >= 2.1, not installed)"


@pytest.mark.parametrize(
    ("variants", "reason"),
    [
        (FOUR, "tflite-int8: smallest of 4 that fit"),
        (FOUR[:1], "onnx-float32: the only one that fits"),
        ((variant("onnx-int8", 300), FOUR[0], FOUR[1]), "onnx-int8: the only int8 of 3 that fit"),
        ((variant("onnx-int8", 300), variant("tflite-int8", 100, latency_ms=9)), "onnx-int8: fastest measured int8 of 2, 2 fit"),
        ((variant("onnx-int8", 300), variant("tflite-int8", 100, drop=0.2)), "onnx-int8: most accurate int8 of 2, 2 fit"),
    ],
)
def test_the_reason_is_what_decided(variants: tuple[Variant, ...], reason: str) -> None:
    assert choose_variant(release(*variants), BOTH).reason == reason


def test_no_fitting_variant_is_a_refusal_that_names_each_obstacle() -> None:
    with pytest.raises(RefusedError) as caught:
        choose_variant(release(*FOUR[2:]), Capabilities(runtimes={"litert": "2.0.9"}))
    assert str(caught.value) == (
        "no variant fits because onnx-int8 needs onnxruntime >= 1.23, not installed; tflite-int8 needs litert >= 2.1, 2.0.9 is installed"
    )


@pytest.mark.parametrize(
    ("needs", "obstacle"),
    [
        (Needs(Runtime.ONNXRUNTIME, "1.31"), ""),
        (Needs(Runtime.ONNXRUNTIME, "1.31.1"), ""),
        (Needs(Runtime.ONNXRUNTIME, "1.31.2"), "onnxruntime >= 1.31.2, 1.31.1 is installed"),
        (Needs(Runtime.ONNXRUNTIME, "1.100"), "onnxruntime >= 1.100, 1.31.1 is installed"),
        (Needs(Runtime.TFLITE_RUNTIME, "2.14"), "tflite_runtime >= 2.14, not installed"),
        (Needs(Runtime.ONNXRUNTIME, "1", arch=["x86_64"]), "x86_64, this is aarch64"),
        (Needs(Runtime.ONNXRUNTIME, "1", arch=["x86_64", "aarch64"]), ""),
        (Needs(Runtime.ONNXRUNTIME, "1", cpu_flags=["asimddp", "i8mm"]), "CPU i8mm, not here"),
        (Needs(Runtime.ONNXRUNTIME, "1", memory=1 << 30), ""),
        (Needs(Runtime.ONNXRUNTIME, "1", memory=(1 << 30) + 1), "1024 MiB of memory, this has 1024 MiB"),
    ],
)
def test_each_need_is_checked(needs: Needs, obstacle: str) -> None:
    assert find_obstacle(needs, BOTH) == obstacle


@pytest.mark.parametrize(
    ("installed", "fits"), [("2.1.0", True), ("2.1", True), ("2.1.0rc1+cu12", True), ("2.0", False), ("", False), ("dev", False)]
)
def test_versions_are_compared_as_numbers(installed: str, fits: bool) -> None:
    obstacle = find_obstacle(Needs(Runtime.LITERT, "2.1"), Capabilities(runtimes={"litert": installed}))
    assert (obstacle == "") is fits


def test_a_reason_fits_into_a_report() -> None:
    many = [variant(f"tflite-int8-{'x' * 40}{index}", 100 + index) for index in range(30)]
    assert len(choose_variant(release(FOUR[0], *many), ONNX_ONLY).reason) <= MAX_REASON_CHARS
