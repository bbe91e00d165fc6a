"""`covey-agent doctor`: looks for what usually goes wrong, and says what to do. Works whether the daemon runs or not; changes nothing."""

import argparse
import logging
import os

import msgspec

from covey_agent.commands.output import say, say_json
from covey_agent.doctor.case import open_case
from covey_agent.doctor.examination import CHECKS, Examined, examine
from covey_agent.doctor.finding import Level
from covey_agent.errors import UsageError
from covey_agent.settings import find_state_dir

EXIT_PROBLEMS = 9
_MARKS = {Level.OK: "ok", Level.SKIPPED: "-", Level.WARNING: "WARNING", Level.PROBLEM: "PROBLEM"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.description = f"Look for what usually goes wrong, and say what to do. Exits with {EXIT_PROBLEMS} if there is a problem."
    parser.add_argument("--offline", action="store_true", help="look at this machine only, not at the network")
    parser.add_argument("--timeout", type=float, default=5.0, metavar="S", help="for each step over the network, seconds; default: 5")


def run(options: argparse.Namespace) -> int:
    """Examine and report."""
    if not 0 < options.timeout <= 60:
        raise UsageError(f"--timeout must be more than 0 and at most 60 seconds, got {options.timeout:g}")
    logging.getLogger("covey_agent").addHandler(logging.NullHandler())  # the findings say it better
    logging.getLogger("covey_agent").propagate = False
    case = open_case(find_state_dir(options.state_dir), os.environ, timeout_s=options.timeout)
    lines = []
    for line in examine(case, offline=options.offline):
        lines.append(line)
        if not options.json:
            _say(line)
    problems = sum(line.level is Level.PROBLEM for line in lines)
    warnings = sum(line.level is Level.WARNING for line in lines)
    if options.json:
        say_json({"healthy": not problems, "problems": problems, "warnings": warnings, "checks": msgspec.to_builtins(lines)})
    else:
        say()
        say(f"{len(lines)} checks: {_count(problems, 'problem')}, {_count(warnings, 'warning')}")
    return EXIT_PROBLEMS if problems else 0


def _say(line: Examined) -> None:
    width = max(map(len, CHECKS))
    say(f"{_MARKS[line.level]:<8} {line.check:<{width}}  {line.found}")
    if line.advice:
        say(f"{'':<8} {'':<{width}}  -> {line.advice}")


def _count(number: int, what: str) -> str:
    return f"{number or 'no'} {what}{'' if number == 1 else 's'}"
