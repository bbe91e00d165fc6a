"""What a user gets wrong: each a clear error, and nothing in the output directory."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tests.fakes.poison import Behaviour, poison_file

from covey_contract.release import Runtime
from covey_quantize.errors import BadInputError, DatasetError, ModelCrashError, ModelFileError, RequestError, UnknownVariantError
from covey_quantize.pipeline import quantize_model
from covey_quantize.request import QuantizeRequest
from covey_quantize.worker import Failed, decode_line

pytestmark = pytest.mark.runtime
MODELS = Path(__file__).with_name("digits_models.py")


def _linear(*, shape: list[Any], outputs: int = 1, kind: int = TensorProto.FLOAT) -> bytes:
    """A valid ONNX file: the input, flattened and summed."""
    take = helper.make_tensor_value_info("input", kind, shape)
    give = [helper.make_tensor_value_info(f"y{index}", kind, [shape[0], 1]) for index in range(outputs)]
    nodes = [helper.make_node("ReduceSum", ["input", "axes"], [value.name], keepdims=0) for value in give]
    axes = numpy_helper.from_array(np.arange(2, len(shape)), "axes")
    graph = helper.make_graph(nodes, "g", [take], give, [axes])
    return bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9).SerializeToString())


GOOD = _linear(shape=["n", 1, 8])


def _external() -> bytes:
    model = onnx.load_model_from_string(GOOD)
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../etc/passwd")
    return bytes(model.SerializeToString())


@pytest.fixture
def data(tmp_path: Path) -> str:
    """Samples of the shape that GOOD takes."""
    np.savez(tmp_path / "data.npz", x=np.random.default_rng(0).random((20, 1, 8), dtype=np.float32))
    return str(tmp_path / "data.npz")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"\x00\x01 this is no model", "expected an ONNX model, got 19 bytes that are not one"),
        (GOOD[: len(GOOD) // 2], "expected an ONNX model"),
        (onnx.ModelProto().SerializeToString() + b"\x08\x08", "without operators or outputs"),
        (_linear(shape=["n", 1, 8], outputs=2), "expected one input and one output, got 1 and 2"),
        (_linear(shape=["n", 1, 8], kind=TensorProto.DOUBLE), "as float32, got double"),
        (_linear(shape=[4, 1, 8]), r"any batch size or 1, got \[4, 1, 8\]"),
        (_external(), "weights are in another file"),
        (GOOD.replace(b"ReduceSum", b"ReduceXum"), "not a valid ONNX model"),
    ],
)
def test_a_file_that_is_no_usable_model_is_refused(tmp_path: Path, data: str, content: bytes, message: str) -> None:
    (tmp_path / "model.onnx").write_bytes(content)
    with pytest.raises(ModelFileError, match=message):
        quantize_model(QuantizeRequest(model=str(tmp_path / "model.onnx"), calibration=data, out=str(tmp_path / "out")))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.npz", "model.onnx"]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"model": "nowhere.onnx"}, ModelFileError, r"nowhere\.onnx: no such file"),
        ({"model": "model.tflite"}, ModelFileError, r"expected a \.onnx file, a \.pt2 file or path\.py:function"),
        ({"model": f"{MODELS}:no_such"}, ModelFileError, "expected a function 'no_such'"),
        ({"model": f"{MODELS}:build_number"}, ModelFileError, r"must return a torch\.nn\.Module, got int"),
        ({"model": f"{MODELS}:build_cnn"}, DatasetError, r"does not take samples of shape \[1, 8\]"),
        ({"weights": "weights.safetensors"}, RequestError, r"weights belong to a model of the form path\.py:function"),
        ({"variants": ["onnx-int4"]}, UnknownVariantError, "unknown variant 'onnx-int4'"),
        ({"labels": ["a", "b"]}, RequestError, "expected 1 labels, one an output of the model, got 2"),
    ],
)
def test_a_wrong_request_is_refused(tmp_path: Path, data: str, changes: dict[str, Any], error: type[BadInputError], message: str) -> None:
    (tmp_path / "model.onnx").write_bytes(GOOD)
    (tmp_path / "weights.safetensors").write_bytes(b"x")
    (tmp_path / "model.tflite").write_bytes(b"x")
    fields = {"model": str(tmp_path / "model.onnx"), "calibration": data, "out": str(tmp_path / "out")} | changes
    with pytest.raises(error, match=message):
        quantize_model(QuantizeRequest(**fields))
    assert not (tmp_path / "out").exists()


def test_calibration_data_of_another_shape_are_refused(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(GOOD)
    np.savez(tmp_path / "data.npz", x=np.zeros((4, 3, 8), np.float32))
    with pytest.raises(DatasetError, match=r"the model takes samples of shape \[1, 8\], got \[3, 8\]"):
        quantize_model(
            QuantizeRequest(model=str(tmp_path / "model.onnx"), calibration=str(tmp_path / "data.npz"), out=str(tmp_path / "out"))
        )


def test_damaged_programs_and_weights_are_refused(tmp_path: Path, data: str) -> None:
    (tmp_path / "model.pt2").write_bytes(b"PK\x03\x04 not a program")
    (tmp_path / "weights.safetensors").write_bytes(b"\xff" * 40)
    out = str(tmp_path / "out")
    with pytest.raises(ModelFileError, match=r"expected a program saved by torch\.export\.save"):
        quantize_model(QuantizeRequest(model=str(tmp_path / "model.pt2"), calibration=data, out=out))
    weights = str(tmp_path / "weights.safetensors")
    with pytest.raises(ModelFileError, match=r"expected a \.safetensors file"):
        quantize_model(QuantizeRequest(model=f"{MODELS}:build_cnn", weights=weights, calibration=data, out=out))


def test_weights_of_another_model_are_refused_by_name(tmp_path: Path, data: str) -> None:
    import torch
    from safetensors.torch import save_file

    save_file({"0.weight": torch.zeros(2), "extra": torch.zeros(1)}, tmp_path / "weights.safetensors")
    weights = str(tmp_path / "weights.safetensors")
    with pytest.raises(ModelFileError, match=r"missing 0\.bias, .*, unexpected extra"):
        quantize_model(QuantizeRequest(model=f"{MODELS}:build_cnn", weights=weights, calibration=data, out=str(tmp_path / "out")))


@pytest.mark.parametrize(
    ("behaviour", "error", "message"),
    [
        (Behaviour.CRASH, ModelCrashError, "crashed the process with SIG"),
        (Behaviour.HANG, ModelCrashError, "took longer than 3 s and was killed"),
        (Behaviour.NAN, ModelFileError, "answers NaN or infinity on 10 of 10 held-out samples"),
    ],
)
def test_a_poison_model_is_told_and_does_not_take_the_pipeline_with_it(
    tmp_path: Path, behaviour: Behaviour, error: type[BadInputError], message: str
) -> None:
    (tmp_path / "model.onnx").write_bytes(poison_file(behaviour, Runtime.ONNXRUNTIME))
    np.savez(tmp_path / "data.npz", x=np.random.default_rng(0).random((20, 1, 28, 28), dtype=np.float32))
    request = QuantizeRequest(
        model=str(tmp_path / "model.onnx"),
        calibration=str(tmp_path / "data.npz"),
        out=str(tmp_path / "out"),
        measure_timeout_s=3 if behaviour is Behaviour.HANG else 60,
    )
    with pytest.raises(error, match=message):
        quantize_model(request)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.npz", "model.onnx"]


@pytest.mark.parametrize(
    ("line", "message"), [(b"hello\n", "expected one QuantizeRequest"), (b'{"model": 1}\n', "str"), (b"", "expected one")]
)
def test_the_worker_answers_a_malformed_request(line: bytes, message: str) -> None:
    command = [sys.executable, "-m", "covey_quantize.worker"]
    done = subprocess.run(command, input=line, capture_output=True, timeout=60, check=False)
    answer = decode_line(done.stdout)
    assert isinstance(answer, Failed)
    assert (answer.error, answer.bad_input, done.returncode) == ("RequestError", True, 2)
    assert message in answer.message


def test_the_command_names_the_error_and_exits_with_2(tmp_path: Path, data: str) -> None:
    (tmp_path / "model.onnx").write_bytes(b"junk")
    command = [
        sys.executable,
        "-m",
        "covey_quantize.cli",
        str(tmp_path / "model.onnx"),
        "--calibration",
        data,
        "--out",
        str(tmp_path / "out"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "ModelFileError" in done.stderr
    assert "expected an ONNX model, got 4 bytes" in done.stderr
    assert done.stdout == ""
    assert not (tmp_path / "out").exists()


def test_help_documents_the_exit_codes() -> None:
    done = subprocess.run([sys.executable, "-m", "covey_quantize.cli", "--help"], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0
    assert "Exit codes: 0 done; 2 bad input" in " ".join(done.stdout.split())


def test_a_worker_that_is_told_the_server_s_request_understands_it(tmp_path: Path) -> None:
    """Fields that the server sends are fields that exist; a misspelt one is an error, not ignored."""
    request = {"model": "nowhere.onnx", "calibration": "x.npz", "out": str(tmp_path / "out"), "max_accuracy_dorp": 0.1}
    command = [sys.executable, "-m", "covey_quantize.worker"]
    done = subprocess.run(command, input=json.dumps(request).encode() + b"\n", capture_output=True, timeout=60, check=False)
    answer = decode_line(done.stdout)
    assert isinstance(answer, Failed)
    assert "max_accuracy_dorp" in answer.message
