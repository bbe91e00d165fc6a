"""Run a module of this package as a child process, with a time and a memory limit, and read its one-line answer.

Runtimes and converters crash, hang and grow on some models; in a child that costs one variant instead of the program. The job
goes in as one JSON line on standard input, the answer comes out as the last line of standard output. A child ends with us.
"""

import ctypes
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO, TypeVar

import msgspec
from msgspec import Struct

from covey_quantize.errors import ChildFailedError

T = TypeVar("T", bound=Struct)
_POLL_S = 0.05
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def run_child(module: str, job: Struct, answer: type[T], *, what: str, timeout_s: float, memory: int) -> T:
    """Run `python -m module` on `job`. Raises ChildFailedError saying how it ended if not with an answer.

    Args:
        what: the subject of the error message, for example "onnx-int8".
        memory: resident bytes that the child may use; watched on Linux only.
    """
    with tempfile.TemporaryFile() as answers, tempfile.TemporaryFile() as complaints:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", module], stdin=subprocess.PIPE, stdout=answers, stderr=complaints, env=_environment()
        )
        try:
            _hand_over(process, msgspec.json.encode(job))
            _watch(process, what, timeout_s=timeout_s, memory=memory)
        finally:
            process.kill()
            process.wait()
        if process.returncode != 0:
            raise ChildFailedError(what, _how_it_ended(process.returncode, _last_line(complaints)))
        try:
            return msgspec.json.decode(_last_line(answers), type=answer)
        except msgspec.DecodeError as exc:
            raise ChildFailedError(what, f"ended without an answer: {exc}") from exc


def die_with_parent() -> None:
    """Called by a child: ask the kernel to kill it when its parent dies, so that a killed worker leaves no orphan. Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def end_cleanly_on_terminate() -> None:
    """Called by a program: SIGTERM unwinds like an error, so that scratch files and children are removed."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))


def claim_stdout() -> IO[bytes]:
    """Called by a child: the real standard output; what libraries print from now on goes to standard error."""
    sys.stdout.flush()
    real = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return real


def _hand_over(process: subprocess.Popen[bytes], job: bytes) -> None:
    if process.stdin is None:
        return
    try:
        process.stdin.write(job + b"\n")
        process.stdin.close()
    except BrokenPipeError:
        return  # it died at once; how is told by its exit code


def _watch(process: subprocess.Popen[bytes], what: str, *, timeout_s: float, memory: int) -> None:
    deadline = time.monotonic() + timeout_s
    while process.poll() is None:
        if time.monotonic() > deadline:
            raise ChildFailedError(what, f"took longer than {timeout_s:g} s and was killed")
        used = _resident_bytes(process.pid)
        if used > memory:
            raise ChildFailedError(what, f"used {used // 2**20} MiB, {memory // 2**20} MiB are allowed, and was killed")
        try:
            process.wait(_POLL_S)
        except subprocess.TimeoutExpired:
            continue


def _resident_bytes(pid: int) -> int:
    """Resident memory; 0 where /proc does not tell (macOS, or the process just ended)."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_bytes().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


def _how_it_ended(code: int, complaint: bytes) -> str:
    if code < 0:
        return f"crashed the process with {signal.Signals(-code).name}"
    return f"failed with exit code {code}: {complaint.decode(errors='replace')[:400]}"


def _last_line(file: IO[bytes]) -> bytes:
    file.seek(0)
    lines = [line for line in file.read().splitlines() if line.strip()]
    return lines[-1] if lines else b""


def _environment() -> dict[str, str]:
    return {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"}
