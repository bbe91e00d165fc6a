"""`python -m covey_agent.workers.hook`: run the device owner's health hook once. HookJob -> HookEnded.

The hook is any executable. It is healthy if it ends with 0 in time; what it prints last is the reason if it does not.
"""

import os
import signal
import subprocess

from covey_agent.core.jobs import HookEnded, HookJob
from covey_agent.workers.lines import Lines, die_with_parent

_TAIL_BYTES = 300


def main() -> None:
    """Do the job on standard input and end."""
    lines = Lines.take_over()
    job = lines.read_job(HookJob)
    lines.abandon_at_end()
    lines.emit(run_hook(job))


def run_hook(job: HookJob) -> HookEnded:
    """Run it to its end, or to the end of its time; whatever it started in its own process group ends with it."""
    try:
        process = subprocess.Popen(
            job.command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=os.environ | job.environment,
            process_group=0,
            preexec_fn=die_with_parent,  # noqa: PLW1509  # this process has one thread that runs Python code of its own
        )
    except OSError as exc:
        return HookEnded(healthy=False, reason=f"the health hook cannot be started: {exc.strerror}: {job.command[0]}")
    try:
        output, _ = process.communicate(timeout=job.timeout_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()  # everybody who held its output is gone
        return HookEnded(healthy=False, reason=f"the health hook gave no answer within {job.timeout_s:g} s")
    if process.returncode == 0:
        return HookEnded(healthy=True)
    said = output[-_TAIL_BYTES:].decode("utf-8", "replace").strip().replace("\n", " | ")
    how = f"exit code {process.returncode}" if process.returncode > 0 else signal.Signals(-process.returncode).name
    return HookEnded(healthy=False, reason=f"the health hook ended with {how}" + (f": {said}" if said else ""))


if __name__ == "__main__":
    main()
