"""The output directory is whole, as it was, or refused; never half."""

from pathlib import Path

import pytest

from covey_quantize.errors import OutputDirectoryError
from covey_quantize.package import check_output, publish, scratch_beside


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_files_and_report_appear_together(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "release"
    check_output(out)
    with scratch_beside(out) as scratch:
        (scratch / "raw").write_bytes(b"model")
        publish({"onnx-int8.onnx": scratch / "raw"}, b"{}", out, scratch)
    assert _names(out) == ["onnx-int8.onnx", "report.json"]
    assert _names(out.parent) == ["release"]


def test_an_earlier_result_is_replaced_whole(tmp_path: Path) -> None:
    out = tmp_path / "release"
    out.mkdir()
    (out / "report.json").write_text("{}")
    (out / "tflite-int8.tflite").write_bytes(b"old")
    check_output(out)
    with scratch_beside(out) as scratch:
        publish({}, b"new", out, scratch)
    assert _names(out) == ["report.json"]
    assert (out / "report.json").read_bytes() == b"new"


def test_an_error_in_between_leaves_nothing_behind(tmp_path: Path) -> None:
    out = tmp_path / "release"
    with pytest.raises(FileNotFoundError), scratch_beside(out) as scratch:
        publish({"onnx-int8.onnx": scratch / "never-made"}, b"{}", out, scratch)
    assert _names(tmp_path) == []


def test_somebody_s_directory_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(OutputDirectoryError, match="not an earlier result"):
        check_output(tmp_path)
    with pytest.raises(OutputDirectoryError, match="expected a directory, got a file"):
        check_output(tmp_path / "thesis.txt")
    with pytest.raises(OutputDirectoryError, match="parent cannot be made"):
        check_output(tmp_path / "thesis.txt" / "release")
