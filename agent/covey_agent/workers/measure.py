"""`python -m covey_agent.workers.measure`: how fast is this variant on this device? MeasureJob -> Measured | MeasureFailed.

In a process of its own, because an artifact or a provider that does not suit the processor kills it.
"""

import os
import statistics
import time
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
import numpy as np

from covey_agent.core.jobs import Measured, MeasureFailed, MeasureJob
from covey_agent.workers.errors import ModelError
from covey_agent.workers.lines import Lines
from covey_agent.workers.runtimes import load_model
from covey_contract.limits import MAX_REASON_CHARS

_WARM_UP, _LEAST_RUNS, _MOST_RUNS = 3, 5, 200
_TIME_S = 0.5  # enough runs for a median, and no more of a small device's time


def main() -> None:
    """Do the job on standard input and end."""
    lines = Lines.take_over()
    job = lines.read_job(MeasureJob)
    try:
        lines.emit(Measured(latency_ms=measure(job)))
    except ModelError as exc:
        lines.emit(MeasureFailed(reason=str(exc)[:MAX_REASON_CHARS]))


def measure(job: MeasureJob) -> float:
    """The median of one sample's latency, ms. Raises ModelError."""
    model = load_model(Path(job.path), job.variant, threads=1, provider=job.provider)
    sample = np.random.default_rng(0).random((1, *model.sample_shape), np.float32)
    for _ in range(_WARM_UP):
        model.run(sample)
    latencies: list[float] = []
    end = time.perf_counter() + _TIME_S
    while len(latencies) < _LEAST_RUNS or (len(latencies) < _MOST_RUNS and time.perf_counter() < end):
        start = time.perf_counter()
        model.run(sample)
        latencies.append((time.perf_counter() - start) * 1000)
    return statistics.median(latencies)


if __name__ == "__main__":
    main()
