"""`covey-agent run`: the daemon, in the foreground."""

import argparse
import logging
import os

from covey_agent.app import run_agent
from covey_agent.settings import find_state_dir


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("--verbose", action="store_true", help="log every step")


def run(options: argparse.Namespace) -> int:
    """Run until SIGTERM or SIGINT."""
    level = logging.DEBUG if options.verbose else logging.INFO
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    run_agent(find_state_dir(options.state_dir), os.environ)
    return 0
