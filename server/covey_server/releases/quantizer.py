"""The quantizer as the server sees it: a child process, one JSON line in, JSON lines out.

`python -m covey_quantize.worker` is another package that the server never imports: converters crash, hang and eat memory, and
here that costs one build. The structs below are the part of its lines that the server reads; unknown fields are let pass, so
that a newer quantizer can add some.
"""

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, Queue
from typing import IO

import msgspec
import psutil
from msgspec import Struct

from covey_contract.limits import MAX_REASON_CHARS
from covey_contract.release import Golden, Runtime, TensorSpec
from covey_server.errors import CoveyServerError

logger = logging.getLogger(__name__)
WORKER = (sys.executable, "-m", "covey_quantize.worker")
_MAX_LINE_BYTES = 16 * 1024 * 1024
_POLL_S = 0.25


class QuantizerError(CoveyServerError):
    """The quantizer gave no result; the message is for the release's reason."""


class BuildStoppedError(CoveyServerError):
    """The worker is being stopped; the build shall be taken up again."""


class QuantizeRequest(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the server asks for; the quantizer's own defaults hold for the rest."""

    model: str
    calibration: str
    out: str
    weights: str = ""
    held_out: str = ""
    labels: list[str] = []
    variants: list[str] = []
    tflite: bool = True
    max_accuracy_drop: float


class Progress(Struct, frozen=True, tag="progress"):
    """One step has begun."""

    step: str
    detail: str = ""
    done: int = 0
    total: int = 0


class VariantReport(Struct, frozen=True):
    """One artifact as it was measured."""

    name: str
    precision: str
    runtime: Runtime
    min_runtime_version: str
    file: str
    sha256: str
    length: int
    input: TensorSpec
    output: TensorSpec
    # A measurement that is not a number comes as null, since JSON has no NaN.
    accuracy: float | None
    accuracy_drop: float | None
    relative_error: float | None
    latency_ms: float | None
    golden_tolerance: float
    accepted: bool
    memory: int = 0
    size_ratio: float | None = None
    recipe: str = ""
    reason: str = ""


class Missing(Struct, frozen=True):
    """A variant that could not be made."""

    name: str
    reason: str


class QuantizeReport(Struct, frozen=True):
    """The whole result."""

    variants: list[VariantReport]
    golden: Golden
    labels: list[str] = []
    missing: list[Missing] = []
    held_out_samples: int = 0


class Finished(Struct, frozen=True, tag="finished"):
    """The last line of a build that went well."""

    report: QuantizeReport


class Failed(Struct, frozen=True, tag="failed"):
    """The last line of one that did not."""

    error: str
    message: str


Line = Progress | Finished | Failed


@dataclass(frozen=True, slots=True)
class QuantizerLimits:
    """What a build may take."""

    timeout_s: float
    memory: int  # resident bytes of the worker and all its children


def run_quantizer(
    request: QuantizeRequest,
    limits: QuantizerLimits,
    *,
    on_progress: Callable[[Progress], None],
    stopped: threading.Event,
    log: Path,
    command: Sequence[str] = WORKER,
) -> QuantizeReport:
    """Run one build to its end. Raises QuantizerError with the reason, BuildStoppedError if `stopped` was set meanwhile.

    Args:
        log: where the child's standard error goes.
    """
    with log.open("wb") as complaints:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=complaints,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            start_new_session=True,  # so that it can be killed with all its children
        )
    lines: Queue[bytes | None] = Queue()
    reader = threading.Thread(target=_read_lines, args=(process.stdout, lines), name="quantizer-lines", daemon=True)
    reader.start()
    try:
        _hand_over(process, request)
        return _listen(process, lines, limits, on_progress=on_progress, stopped=stopped, log=log)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        reader.join(5.0)


def _hand_over(process: subprocess.Popen[bytes], request: QuantizeRequest) -> None:
    if process.stdin is None:
        raise QuantizerError("the quantizer was started without a pipe")
    with suppress(BrokenPipeError), process.stdin as stdin:  # if it died at once, its exit code says how
        stdin.write(msgspec.json.encode(request) + b"\n")


def _listen(
    process: subprocess.Popen[bytes],
    lines: "Queue[bytes | None]",
    limits: QuantizerLimits,
    *,
    on_progress: Callable[[Progress], None],
    stopped: threading.Event,
    log: Path,
) -> QuantizeReport:
    deadline = time.monotonic() + limits.timeout_s
    while True:
        _check_limits(process, limits, deadline)
        if stopped.is_set():
            raise BuildStoppedError("the worker is being stopped")
        try:
            line = lines.get(timeout=_POLL_S)
        except Empty:
            continue
        match None if line is None else _decode(line):
            case Progress() as progress:
                on_progress(progress)
            case Finished(report=report):
                return report
            case Failed(message=message):
                raise QuantizerError(message[:MAX_REASON_CHARS])
            case None:
                raise QuantizerError(_how_it_ended(process, log))


def _read_lines(stream: IO[bytes], lines: "Queue[bytes | None]") -> None:
    with stream:
        while line := stream.readline(_MAX_LINE_BYTES):
            lines.put(line)
    lines.put(None)


def _decode(line: bytes) -> Line:
    try:
        decoded: Line = msgspec.json.decode(line, type=Line)
        return decoded
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise QuantizerError(f"the quantizer said something that is no line of its protocol: {exc}") from exc


def _check_limits(process: subprocess.Popen[bytes], limits: QuantizerLimits, deadline: float) -> None:
    if time.monotonic() > deadline:
        raise QuantizerError(f"quantizing took longer than {limits.timeout_s:g} s (releases.build_timeout_s)")
    used = _resident_bytes(process.pid)
    if used > limits.memory:
        raise QuantizerError(f"quantizing used {used // 2**20} MB, {limits.memory // 2**20} MB are allowed (releases.build_memory_mb)")


def _resident_bytes(pid: int) -> int:
    """Of a process and its children; 0 once it has ended."""
    total = 0
    with suppress(psutil.Error):
        root = psutil.Process(pid)
        for process in (root, *root.children(recursive=True)):
            with suppress(psutil.Error):
                total += process.memory_info().rss
    return total


def _how_it_ended(process: subprocess.Popen[bytes], log: Path) -> str:
    code = process.wait()
    if code < 0:
        return f"the quantizer was ended by {signal.Signals(-code).name}"
    words = log.read_bytes()[-4000:].decode(errors="replace").strip().splitlines()
    return f"the quantizer ended with exit code {code} and no result: {words[-1] if words else 'no message'}"[:MAX_REASON_CHARS]
