"""The pipeline as a child process: one QuantizeRequest as a JSON line in, Progress lines and one final line out.

    echo '{"model": "model.pt2", "calibration": "data.npz", "out": "release"}' | python -m covey_quantize.worker

Lines carry "type": "progress", then "finished" or "failed". The exit code is 0 for "finished", else the error's. The caller may
kill it at any time: the output directory is untouched until the end, and its own children die with it. On Linux it ends when
the thread that started it ends, so that thread must wait for it.
"""

import sys
from typing import IO

import msgspec
from msgspec import Struct

from covey_quantize.child import claim_stdout, die_with_parent, end_cleanly_on_terminate
from covey_quantize.errors import QuantizeError, RequestError
from covey_quantize.pipeline import quantize_model
from covey_quantize.report import QuantizeReport
from covey_quantize.request import Progress, QuantizeRequest


class Finished(Struct, frozen=True, tag="finished"):
    """The result; its files are in the output directory."""

    report: QuantizeReport


class Failed(Struct, frozen=True, tag="failed"):
    """Why there is no result."""

    error: str  # class name of the QuantizeError
    message: str
    bad_input: bool  # the caller can fix it


Line = Progress | Finished | Failed


def main() -> int:
    """Do the one request on standard input and return the exit code."""
    die_with_parent()
    end_cleanly_on_terminate()
    answers = claim_stdout()
    try:
        request = _read_request(sys.stdin.buffer)
        report = quantize_model(request, progress=lambda step: _say(answers, step))
    except QuantizeError as exc:
        _say(answers, Failed(type(exc).__name__, str(exc), exc.exit_code == RequestError.exit_code))
        return exc.exit_code
    _say(answers, Finished(report))
    return 0


def decode_line(line: bytes) -> Line:
    """Parse one line of a worker's output, for those who start one. Raises msgspec.DecodeError."""
    parsed: Line = msgspec.json.decode(line, type=Line)
    return parsed


def _read_request(stream: IO[bytes]) -> QuantizeRequest:
    line = stream.readline()
    try:
        return msgspec.json.decode(line, type=QuantizeRequest)
    except msgspec.DecodeError as exc:
        raise RequestError(f"expected one QuantizeRequest as a line of JSON: {exc}") from exc


def _say(answers: IO[bytes], line: Struct) -> None:
    answers.write(msgspec.json.encode(line) + b"\n")
    answers.flush()


if __name__ == "__main__":
    sys.exit(main())
