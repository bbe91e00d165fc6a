"""The story of the demo, step by step; everything it starts is stopped at the end, however it ends."""

import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from covey_server.cli.output import CommandError
from covey_server.demo.actors import Troupe
from covey_server.demo.bring_up import bring_up
from covey_server.demo.enrol import enrol
from covey_server.demo.finale import finish, summary, write_report
from covey_server.demo.memory import MemoryWatch
from covey_server.demo.narrator import Narrator
from covey_server.demo.outage import outage
from covey_server.demo.poison import poison
from covey_server.demo.serve import serve
from covey_server.demo.ship import release, roll_out
from covey_server.demo.stage import DemoOptions, Stage, StepFailedError
from covey_server.demo.train import train
from covey_server.errors import CoveyServerError

STEPS: tuple[tuple[str, Callable[[Stage], None]], ...] = (
    ("A server comes up", bring_up),
    ("Devices and partners enrol", enrol),
    ("They train a model together, with differential privacy", train),
    ("The model becomes a release: quantized, measured, signed", release),
    ("The release is rolled out, canary first", roll_out),
    ("Applications ask their own device", serve),
    ("A device loses the network", outage),
    ("Poisoned releases are shipped", poison),
    ("What happened", finish),
)


def run_demo(options: DemoOptions) -> int:
    """Tell the story. Returns 0 only if every step held, 130 after Ctrl-C."""
    narrator = Narrator()
    work_dir = (options.work_dir or Path(tempfile.mkdtemp(prefix="covey-demo-"))).absolute()
    if (work_dir / "server").exists():
        narrator.bad(f"{work_dir} holds a demo already: name another --workdir, or remove it")
        return 2
    narrator.line(f"everything is kept in {work_dir}")
    stage = Stage(options, work_dir, narrator, Troupe(work_dir / "logs"))
    watch = MemoryWatch()
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        _tell(stage, watch)
        if options.stay:
            _stay(stage)
    except KeyboardInterrupt:
        narrator.line("interrupted")
        return 130
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C must not leave orphans
        narrator.line("stopping every process ...")
        stage.troupe.stop_all()
        watch.close()
        if stage.cable is not None:
            stage.cable.close()
    return 1 if stage.failures else 0


def _tell(stage: Stage, watch: MemoryWatch) -> None:
    try:
        for number, (title, act) in enumerate(STEPS, start=1):
            stage.narrator.step(number, title)
            act(stage)
    except (StepFailedError, CommandError, CoveyServerError) as error:
        stage.narrator.bad(str(error))
        stage.narrator.line(f"logs: {stage.work_dir}/logs and {stage.server_dir}/logs")
        stage.failures.append(str(error))
    stage.note("wall_s", round(stage.narrator.elapsed_s(), 1))
    stage.note("peak_pss_mb", watch.peak_mb)
    stage.narrator.table(summary(stage))
    path = write_report(stage)
    verdict = "[green]every step held[/green]" if not stage.failures else f"[red]{len(stage.failures)} promises did not hold[/red]"
    stage.narrator.line(f"{verdict} - report: {path}")


def _stay(stage: Stage) -> None:
    stage.narrator.line(f"The fleet keeps running: {stage.console_url} - Ctrl-C stops everything.")
    while True:
        time.sleep(1)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
