"""A release built by the real quantizer in its real process, from a real ONNX model."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from tests.fakes.services import require
from tests.server.releases.bench import Bench, make_bench

from covey_contract.codec import decode_release, digest_of
from covey_server.releases.build import Builder
from covey_server.releases.imports import create_release_from_file, store_data
from covey_server.releases.models import ReleaseState
from covey_server.releases.requests import BuildOptions
from covey_server.releases.service import get_release, id_of, list_variants

pytestmark = [pytest.mark.runtime, pytest.mark.slow]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    require(importlib.util.find_spec("onnxruntime") and importlib.util.find_spec("onnx"), "onnx and onnxruntime")
    return make_bench(tmp_path)


def make_model(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """A two-layer network that sorts points by the sign of their sum; returns its weights."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    first = rng.normal(size=(16, 256)).astype(np.float32)
    second = rng.normal(size=(256, 2)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "first"], ["a"]),
            helper.make_node("Relu", ["a"], ["b"]),
            helper.make_node("MatMul", ["b", "second"], ["y"]),
        ],
        "sorter",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2])],
        [numpy_helper.from_array(first, "first"), numpy_helper.from_array(second, "second")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), str(path))
    return first, second


def order(bench: Bench, tmp_path: Path, *, model: bytes | None = None) -> int:
    path = tmp_path / "model.onnx"
    first, second = make_model(path)
    if model is not None:
        path.write_bytes(model)
    x = np.random.default_rng(1).normal(size=(200, 16)).astype(np.float32)
    y = np.argmax(np.maximum(x @ first, 0) @ second, axis=1)
    np.savez(tmp_path / "data.npz", x=x, y=y)
    with bench.parts.db.begin() as session:
        release = create_release_from_file(
            session,
            "sorter",
            kind="onnx",
            file=bench.parts.blobs.put_file(path)[0],
            calibration=store_data(tmp_path / "data.npz", bench.parts.blobs),
            labels=["minus", "plus"],
            options=BuildOptions(tflite=False, max_accuracy_drop=0.05),
            created_by="token:test",
        )
        return id_of(release)


def test_a_real_build_publishes_a_quantized_release(bench: Bench, tmp_path: Path) -> None:
    release_id = order(bench, tmp_path)
    builder = Builder(name="w1")
    assert builder.claim(bench.parts, bench.clock()) == release_id
    builder.build(bench.parts, release_id)
    with bench.parts.db.read() as session:
        release = get_release(session, release_id)
        assert (release.state, release.reason) == (ReleaseState.PUBLISHED, "")
        variants = {row.name: row for row in list_variants(session, [release_id])[release_id]}
    manifest = decode_release(bench.repository.targets["releases/sorter/1.json"])
    assert {variant.name for variant in manifest.variants} == {name for name, row in variants.items() if row.accepted}
    assert variants["onnx-int8"].accepted
    assert (variants["onnx-int8"].size_ratio or 0) > 2
    for variant in manifest.variants:
        assert digest_of(bench.parts.blobs.read(variant.artifact)) == variant.artifact
    assert manifest.golden.input_shape[1:] == [16]


def test_a_file_that_is_not_a_model_fails_with_the_quantizers_words(bench: Bench, tmp_path: Path) -> None:
    release_id = order(bench, tmp_path, model=b"this is not a model" * 10)
    builder = Builder(name="w1")
    builder.claim(bench.parts, bench.clock())
    builder.build(bench.parts, release_id)
    with bench.parts.db.read() as session:
        release = get_release(session, release_id)
        assert release.state is ReleaseState.FAILED
        assert "model.onnx" in release.reason
