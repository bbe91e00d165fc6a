"""Behaves as the first word of the job's `state_dir` file name says, so that a test chooses by the job alone."""

import ctypes
import os
import signal
import sys
import time
from pathlib import Path

import msgspec

from covey_agent.core.jobs import DeployJob, DeployRefused, FetchProgress

job = msgspec.json.decode(sys.stdin.buffer.readline(), type=DeployJob)


def emit(event: msgspec.Struct) -> None:
    """One event."""
    sys.stdout.buffer.write(msgspec.json.encode(event) + b"\n")
    sys.stdout.buffer.flush()


match Path(job.state_dir).name:
    case "answer":
        emit(FetchProgress(chunks_done=1, chunks_total=2, bytes_received=3))
        emit(DeployRefused(reason=f"order of {len(job.order)} bytes"))
    case "garbage":
        sys.stdout.buffer.write(b"Warning: \xff\xfe no JSON\n" + b"x" * 3_000_000 + b'\n{"type":"nonsense"}\n')
        sys.stdout.buffer.flush()
        emit(DeployRefused(reason="after garbage"))
    case "segfault":
        ctypes.string_at(0)
    case "abort":
        os.kill(os.getpid(), signal.SIGABRT)
    case "fail":
        sys.stderr.write("the disk is on fire\n")
        raise SystemExit(3)
    case "hang":
        emit(FetchProgress(chunks_done=0, chunks_total=0, bytes_received=os.getpid()))
        time.sleep(60)
    case "eat":
        eaten = []
        for _ in range(64):
            eaten.append(bytearray(16 * 1024 * 1024))
        emit(DeployRefused(reason="ate a gigabyte"))
    case "listen":
        emit(FetchProgress(chunks_done=0, chunks_total=0, bytes_received=os.getpid()))
        sys.stdin.buffer.read()
        emit(DeployRefused(reason="input ended"))
    case unknown:
        raise SystemExit(f"unknown behaviour {unknown}")
