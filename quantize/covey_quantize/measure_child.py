"""The child that loads artifacts and runs them; see measure.py. Started as `python -m covey_quantize.measure_child`."""

import resource
import statistics
import sys
import time
from pathlib import Path

import msgspec
import numpy as np
from msgspec import Struct

from covey_quantize.child import claim_stdout, die_with_parent
from covey_quantize.measure import LatencyDone, LatencyJob, OutputsDone, OutputsJob
from covey_quantize.runtimes import Floats, Runner, open_runner

_ROUNDS = 21
_MIN_TIMED_S = 0.004  # one reading lasts at least this long, far over the clock's resolution


def main() -> None:
    """Do the one job on standard input."""
    die_with_parent()
    answers = claim_stdout()
    job = msgspec.json.decode(sys.stdin.buffer.readline(), type=OutputsJob | LatencyJob)
    done: Struct = _run_outputs(job) if isinstance(job, OutputsJob) else _run_latency(job)
    answers.write(msgspec.json.encode(done) + b"\n")
    answers.close()


def _run_outputs(job: OutputsJob) -> OutputsDone:
    x: Floats = np.load(job.inputs, mmap_mode="r")
    runner = open_runner(Path(job.file), job.runtime)
    outputs = np.concatenate([runner.run(np.array(x[i : i + 1])) for i in range(len(x))])
    memory = _peak_memory()  # before the batch below, which no device runs
    np.save(job.outputs, outputs)
    together = outputs[job.together]
    if runner.input.shape[0] == -1 and job.together:
        together = runner.run(np.array(x[job.together]))
    np.save(job.together_outputs, together)
    return OutputsDone(runner.input, runner.output, memory)


def _run_latency(job: LatencyJob) -> LatencyDone:
    sample = np.array(np.load(job.inputs, mmap_mode="r")[:1])
    runners = [open_runner(Path(file), runtime) for file, runtime in job.files]
    repeats = [_warm_up(runner, sample) for runner in runners]
    readings: list[list[float]] = [[] for _ in runners]
    for _ in range(_ROUNDS):
        for runner, count, reading in zip(runners, repeats, readings, strict=True):
            reading.append(_timed(runner, sample, count) / count)
    return LatencyDone([statistics.median(reading) * 1000 for reading in readings])


def _warm_up(runner: Runner, sample: Floats) -> int:
    """Run a few times and return how many runs make a reading long enough."""
    _timed(runner, sample, 3)
    return max(1, int(_MIN_TIMED_S / max(1e-6, _timed(runner, sample, 1))))


def _timed(runner: Runner, sample: Floats, count: int) -> float:
    started = time.thread_time()
    for _ in range(count):
        runner.run(sample)
    return time.thread_time() - started


def _peak_memory() -> int:
    """Peak resident bytes. On Linux from /proc, because getrusage still knows the parent's peak after exec."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS


if __name__ == "__main__":
    main()
