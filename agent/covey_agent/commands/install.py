"""`covey-agent install`: make the agent a systemd service that starts with the machine. Again changes nothing."""

import argparse
import importlib.util
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from covey_agent.commands.output import say, say_json
from covey_agent.errors import StateError, UsageError
from covey_agent.service.files import (
    Done,
    account_commands,
    run_commands,
    service_files,
    start_commands,
    systemctl_of,
    why_not_systemd,
    write_files,
)
from covey_agent.service.unit import Place
from covey_agent.settings import find_state_dir

LAUNCHER = "covey-agent-launch"
HOMES = ("/home/", "/root/")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    add_place_arguments(parser)
    parser.add_argument("--launcher", help=f"path of {LAUNCHER}; default: the one beside this program")
    parser.add_argument(
        "--trains",
        action=argparse.BooleanOptionalAction,
        default=bool(importlib.util.find_spec("opacus")),
        help="this machine trains: leaves out what torch cannot work under; default: whether the extra `train` is installed",
    )
    parser.add_argument("--start", action="store_true", help="start it now, too; otherwise with the next boot")


def add_place_arguments(parser: argparse.ArgumentParser) -> None:
    """What install and uninstall share."""
    parser.add_argument("--user", action="store_true", help="as a service of this user, without root and without the sandbox")
    parser.add_argument("--root", default="/", metavar="DIR", help="write below this folder, for an image that is being built")
    parser.add_argument("--dry-run", action="store_true", help="only tell what would be done")


def run(options: argparse.Namespace) -> int:
    """Install."""
    root, place = Path(options.root), choose_place(options)
    files = service_files(place, root)
    skip = why_not_systemd(place, root)
    done = write_files(files, dry_run=options.dry_run)
    if not place.of_user:  # these two work without a running systemd
        elsewhere = f"{root} is not this machine's root: it does so at its first boot" if root != Path("/") else ""
        done += run_commands(account_commands(), dry_run=options.dry_run, skip=elsewhere)
    if not has_failed(done):
        done += run_commands(start_commands(place, start=options.start), dry_run=options.dry_run, skip=skip)
    tell(done, as_json=options.json)
    if has_failed(done):
        return StateError.exit_code
    if not options.json and not options.dry_run:
        say(f"next, unless it is enrolled: covey-agent enroll --state-dir {place.state_dir} --token TOKEN")
        say(f"then: {' '.join(systemctl_of(place))} start covey-agent")
    return 0


def choose_place(options: argparse.Namespace) -> Place:
    """Where the service is to run. Raises UsageError."""
    state_dir = str(find_state_dir(options.state_dir or ("~/.local/state/covey-agent" if options.user else None)))
    if options.user and options.root != "/":
        raise UsageError("--user and --root exclude each other")
    launcher = getattr(options, "launcher", None) or str(Path(sys.argv[0]).absolute().with_name(LAUNCHER))
    if hasattr(options, "launcher") and options.root == "/" and not Path(launcher).is_file():
        raise UsageError(f"there is no {launcher}; say where {LAUNCHER} is with --launcher")
    if not launcher.startswith("/"):
        raise UsageError(f"--launcher must be an absolute path, got {launcher}")
    places = (launcher, state_dir, str(Path(sys.executable).resolve()))
    return Place(
        launcher=launcher,
        state_dir=state_dir,
        of_user=options.user,
        in_home=options.root == "/" and any(place.startswith(HOMES) for place in places),
        trains=getattr(options, "trains", False),
    )


def has_failed(done: Sequence[Done]) -> bool:
    """Whether anything went wrong."""
    return any(each.what == "failed" for each in done)


def tell(done: Sequence[Done], *, as_json: bool) -> None:
    """One line each, or JSON."""
    if as_json:
        say_json([asdict(each) for each in done])
        return
    for each in done:
        say(f"{each.what + ':':<11}{each.subject}{' (' + each.detail + ')' if each.detail else ''}")
