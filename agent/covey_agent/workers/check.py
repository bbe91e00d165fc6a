"""`python -m covey_agent.workers.check`: load a staged variant and compare it with its golden outputs.

CheckJob -> CheckPassed | CheckFailed. A runtime that crashes on the artifact takes only this process with it, which the agent
counts as a failure too.
"""

import statistics
import time
from pathlib import Path

from covey_agent.core.jobs import CheckFailed, CheckJob, CheckPassed
from covey_agent.workers.errors import ModelError
from covey_agent.workers.golden import compare, read_golden
from covey_agent.workers.lines import Lines
from covey_agent.workers.runtimes import load_model
from covey_agent.workers.slotmodel import read_slot
from covey_contract.limits import MAX_REASON_CHARS

_TIMED_RUNS = 20


def main() -> None:
    """Do the job on standard input and end."""
    lines = Lines.take_over()
    job = lines.read_job(CheckJob)
    try:
        lines.emit(check(Path(job.slot_dir)))
    except ModelError as exc:
        lines.emit(CheckFailed(reason=str(exc)[:MAX_REASON_CHARS]))


def check(slot_dir: Path) -> CheckPassed:
    """Check one slot. Raises ModelError."""
    content = read_slot(slot_dir)
    inputs, expected = read_golden(content.release.golden)
    model = load_model(content.model, content.variant, threads=1, provider=content.slot.provider)
    if inputs.shape[1:] != model.sample_shape:
        raise ModelError(f"the golden inputs have shape {list(inputs.shape)}, the model takes {[-1, *model.sample_shape]}")
    answers = model.run(inputs)
    error = compare(answers, expected, labels=len(content.release.labels), tolerance=content.variant.golden_tolerance)
    latencies = []
    for index in range(_TIMED_RUNS):
        start = time.perf_counter()
        model.run(inputs[index % len(inputs)][None])
        latencies.append((time.perf_counter() - start) * 1000)
    return CheckPassed(relative_error=error, latency_ms=statistics.median(latencies))


if __name__ == "__main__":
    main()
