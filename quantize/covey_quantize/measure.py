"""Measure variants in child processes: outputs, peak memory and tensor specs one by one, latency all together.

Each file gets a process of its own first, so that one that crashes or hangs costs only itself; those that live are then timed
interleaved in one process, because figures from different moments of a busy machine cannot be compared.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from covey_contract.release import Runtime, TensorSpec
from covey_quantize.child import run_child

Floats = NDArray[np.float32]
_CHILD = "covey_quantize.measure_child"


class OutputsJob(Struct, frozen=True, tag="outputs"):
    """Run every sample, one by one, and save the outputs; then `together` (indexes) as one batch, if the file allows."""

    file: str
    runtime: Runtime
    inputs: str  # .npy
    outputs: str  # .npy to write
    together: list[int]
    together_outputs: str  # .npy to write


class LatencyJob(Struct, frozen=True, tag="latency"):
    """Time one sample on every file, interleaved."""

    files: list[tuple[str, Runtime]]
    inputs: str  # .npy; the first sample is used


class OutputsDone(Struct, frozen=True):
    """What one file is like."""

    input: TensorSpec
    output: TensorSpec
    memory: int  # peak resident bytes


class LatencyDone(Struct, frozen=True):
    """Median milliseconds of CPU time, in the order of the job's files."""

    milliseconds: list[float]


@dataclass(frozen=True, slots=True)
class Limits:
    """What a measuring child may use."""

    timeout_s: float
    memory: int  # resident bytes


@dataclass(frozen=True, slots=True)
class Measured:
    """One file's behaviour."""

    outputs: Floats  # [n, ...], samples run one by one
    together: Floats  # of the samples asked for together, as one batch if the file allows
    input: TensorSpec
    output: TensorSpec
    memory: int


def measure_outputs(path: Path, runtime: Runtime, inputs: Path, *, together: list[int], limits: Limits) -> Measured:
    """Run a file on all samples in its own process. Raises ChildFailedError if that crashes, hangs or fails."""
    one, many = path.with_suffix(path.suffix + ".one.npy"), path.with_suffix(path.suffix + ".many.npy")
    job = OutputsJob(str(path), runtime, str(inputs), str(one), together, str(many))
    done = run_child(_CHILD, job, OutputsDone, what=path.stem, timeout_s=limits.timeout_s, memory=limits.memory)
    return Measured(np.load(one), np.load(many), done.input, done.output, done.memory)


def measure_latency(files: list[tuple[Path, Runtime]], inputs: Path, *, limits: Limits) -> list[float]:
    """Median milliseconds of one inference per file, interleaved. Raises ChildFailedError."""
    job = LatencyJob([(str(path), runtime) for path, runtime in files], str(inputs))
    return run_child(_CHILD, job, LatencyDone, what="timing", timeout_s=limits.timeout_s, memory=limits.memory).milliseconds
