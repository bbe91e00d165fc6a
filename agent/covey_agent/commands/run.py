"""`covey-agent run`: the daemon, in the foreground."""

import argparse
import logging
import os
from collections.abc import Mapping
from typing import NoReturn

import msgspec

from covey_agent.adapters.notify import take_notifier
from covey_agent.app import run_agent
from covey_agent.errors import DecommissionedError
from covey_agent.settings import find_state_dir
from covey_agent.versions import EXIT_RESTART, LAUNCHER_VARIABLE, PARENT

_LEVELS = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}  # as syslog numbers them


class JournalFormatter(logging.Formatter):
    """For the journal, which keeps the time by itself and takes the level from `<N>` before each line."""

    def format(self, record: logging.LogRecord) -> str:
        """Every line of a traceback gets the level, because each becomes an entry."""
        level = _LEVELS.get(record.levelno, 6)
        return "\n".join(f"<{level}>{line}" for line in super().format(record).splitlines())


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("--verbose", action="store_true", help="log every step")


def run(options: argparse.Namespace) -> int:
    """Run until SIGTERM or SIGINT."""
    handler = logging.StreamHandler()
    handler.setFormatter(choose_formatter(os.environ))
    logging.basicConfig(level=logging.DEBUG if options.verbose else logging.INFO, handlers=[handler])
    before = dict(os.environ)
    notifier, launcher = take_notifier(os.environ), os.environ.pop(LAUNCHER_VARIABLE, "")
    try:
        restart_asked = run_agent(find_state_dir(options.state_dir), os.environ, notifier, may_restart=bool(launcher))
    except DecommissionedError:
        notifier.tell("READY=1")  # an end before READY would count as a failure of the service
        notifier.tell("STOPPING=1", "STATUS=decommissioned")
        raise
    if not restart_asked:
        return 0
    if launcher != PARENT:
        start_anew(launcher, before)
    return EXIT_RESTART


def start_anew(launcher: str, environment: Mapping[str, str]) -> NoReturn:
    """Become the launcher, in this very process, which the service manager knows; it starts the version that is current now."""
    command = msgspec.json.decode(launcher, type=list[str])
    logging.shutdown()
    os.execve(command[0], command, environment)  # noqa: S606  # what the launcher said that it is


def choose_formatter(environment: Mapping[str, str]) -> logging.Formatter:
    """The journal's, where standard error goes there; otherwise one with the time, for a terminal or a file."""
    device, _, inode = environment.get("JOURNAL_STREAM", "").partition(":")
    try:
        status = os.fstat(2)
    except OSError:
        status = None
    if status is not None and (device, inode) == (str(status.st_dev), str(status.st_ino)):
        return JournalFormatter("%(name)s: %(message)s")
    return logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
