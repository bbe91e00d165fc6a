"""`covey-agent config show`: every setting with its value, meaning and variable."""

import argparse
import os

from covey_agent.commands.output import say_json, say_table
from covey_agent.settings import describe, find_state_dir, load_settings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The actions."""
    parser.add_argument("action", choices=["show"], nargs="?", default="show")


def run(options: argparse.Namespace) -> int:
    """Print the settings."""
    rows = describe(load_settings(find_state_dir(options.state_dir), os.environ), os.environ)
    if options.json:
        say_json({name: {"value": value, "meaning": meaning, "variable": variable} for name, value, meaning, variable in rows})
    else:
        say_table(rows, ("setting", "value", "meaning", "variable"))
    return 0
