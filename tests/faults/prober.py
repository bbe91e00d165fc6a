"""Stands in for the probe child: says at once what this machine was found to be able to."""

import os
from pathlib import Path

import msgspec

from covey_agent.core.jobs import Probed, ProbeJob
from covey_agent.workers.lines import Lines

FINDING = "COVEY_KILLS_PROBED"  # names a file with a Probed


def main() -> None:
    """Do the job on standard input."""
    lines = Lines.take_over()
    lines.read_job(ProbeJob)
    lines.emit(msgspec.json.decode(Path(os.environ[FINDING]).read_bytes(), type=Probed))
