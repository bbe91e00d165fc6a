"""`covey-agent data add NAME PATH`: what a dataset's name means on this machine."""

import argparse
from pathlib import Path

from covey_agent.commands.output import say, say_json
from covey_agent.errors import StateError, UsageError
from covey_agent.settings import find_state_dir
from covey_agent.settings_file import set_value
from covey_contract.errors import ContractError
from covey_contract.ids import parse_name


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The actions."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    add = actions.add_parser("add", help="name a file or folder as a dataset")
    add.add_argument("name")
    add.add_argument("path")


def run(options: argparse.Namespace) -> int:
    """Add one."""
    state_dir = find_state_dir(options.state_dir)
    path = Path(options.path).expanduser().absolute()
    if not path.exists():
        raise StateError(f"there is no {path}")
    try:
        name = parse_name(options.name, "dataset")
    except ContractError as exc:
        raise UsageError(str(exc)) from exc
    set_value(state_dir, "datasets", name, str(path))
    if options.json:
        say_json({"dataset": name, "path": str(path)})
    else:
        say(f"dataset {name} is {path}")
    return 0
