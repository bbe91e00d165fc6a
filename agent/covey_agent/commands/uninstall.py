"""`covey-agent uninstall`: end the service and take away what `install` wrote. What the device knows stays, unless --purge.

Even --purge keeps the privacy ledger, which is its owner's record of what left this machine, and `agent.toml`, which its owner wrote.
"""

import argparse
import shutil
from pathlib import Path

from covey_agent.adapters.ledger_file import LEDGER_NAME
from covey_agent.adapters.lock import find_holder
from covey_agent.commands.install import add_place_arguments, choose_place, has_failed, tell
from covey_agent.errors import AlreadyRunningError, StateError
from covey_agent.service.files import Done, remove_account, remove_files, run_commands, service_files, stop_commands, why_not_systemd
from covey_agent.settings import FILE_NAME

KEPT = frozenset({LEDGER_NAME, FILE_NAME})


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    add_place_arguments(parser)
    parser.add_argument("--purge", action="store_true", help="also remove identity, models, readings and state; the privacy ledger stays")


def run(options: argparse.Namespace) -> int:
    """Uninstall."""
    root, place = Path(options.root), choose_place(options)
    files = [file for file in service_files(place, root) if file.path.exists()]
    skip = why_not_systemd(place, root)
    unit_is_there = any(file.path.suffix == ".service" for file in files)
    done = run_commands(stop_commands(place), dry_run=options.dry_run, skip=skip) if unit_is_there else []
    if not has_failed(done):
        done += remove_files(files, dry_run=options.dry_run)
        reload = [["systemctl", *(["--user"] if place.of_user else []), "daemon-reload"]]
        done += run_commands(reload, dry_run=options.dry_run, skip=skip) if files else []
        if options.purge:
            done += purge(root / place.state_dir.lstrip("/") if root != Path("/") else Path(place.state_dir), dry_run=options.dry_run)
            if not place.of_user and root == Path("/") and files:
                done += run_commands(remove_account(), dry_run=options.dry_run)
    tell(done or [Done("unchanged", "no service is installed here")], as_json=options.json)
    return StateError.exit_code if has_failed(done) else 0


def purge(state_dir: Path, *, dry_run: bool) -> list[Done]:
    """Remove the state, but for the ledger and the owner's settings. Raises CoveyAgentError."""
    if not state_dir.is_dir():
        return []
    if not ({"identity", "agent.lock", "state.db"} & {path.name for path in state_dir.iterdir()}):
        raise StateError(f"{state_dir} does not look like an agent's state directory: nothing in it was removed")
    holder = find_holder(state_dir / "agent.lock")
    if holder is not None and not dry_run:
        raise AlreadyRunningError(f"an agent (process {holder}) runs on {state_dir}: stop it first")
    done = []
    for path in sorted(state_dir.iterdir()):
        if path.name in KEPT:
            done.append(Done("kept", str(path)))
            continue
        try:
            if not dry_run:
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        except OSError as exc:
            raise StateError(f"cannot remove {path}: {exc.strerror}") from exc
        done.append(Done("removed", str(path)))
    return done
