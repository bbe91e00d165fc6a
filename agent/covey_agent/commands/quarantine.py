"""`covey-agent quarantine list`: what failed here and will not be tried again. Only the server can release it, by a signed order."""

import argparse

import msgspec

from covey_agent.commands.output import say, say_json, say_table, show_time
from covey_agent.commands.state import load_machine, open_state
from covey_agent.settings import find_state_dir


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("action", choices=["list"], nargs="?", default="list")


def run(options: argparse.Namespace) -> int:
    """Print the quarantine."""
    database = open_state(find_state_dir(options.state_dir))
    entries = load_machine(database).quarantine
    if database:
        database.close()
    if options.json:
        say_json(msgspec.to_builtins(entries))
    elif not entries:
        say("nothing is in quarantine")
    else:
        say_table([(entry.digest, show_time(entry.at), entry.reason) for entry in entries], ("digest", "since", "reason"))
    return 0
