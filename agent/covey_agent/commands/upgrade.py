"""`covey-agent upgrade WHEEL_OR_FOLDER --sha256 DIGEST`: put a new version of the agent on trial; the launcher goes back if it is no good.

A folder holds the wheel of covey, the wheels of what it newly needs, and `SHA256SUMS` over them, whose digest is the one to give.
"""

import argparse
import os
import signal
from pathlib import Path
from typing import Any

from covey_agent.adapters.lock import find_holder
from covey_agent.commands.output import say, say_json
from covey_agent.daemon.live import read_live
from covey_agent.errors import StateError, UsageError
from covey_agent.service.switch import switch_back, switch_version
from covey_agent.settings import find_state_dir
from covey_agent.versions import LAUNCHER_VARIABLE, Versions
from covey_agent.versions_file import VersionsFile
from covey_contract.errors import ContractError
from covey_contract.ids import parse_digest


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("source", nargs="?", help="a wheel of covey, or a folder with SHA256SUMS; none: show which versions there are")
    parser.add_argument("--sha256", metavar="DIGEST", help="of the wheel, or of the folder's SHA256SUMS")
    parser.add_argument("--back", action="store_true", help="put the version before this one on trial")
    parser.add_argument("--again", action="store_true", help="even if this version failed here before")
    parser.add_argument("--no-restart", action="store_true", help="let the next start of the agent begin the trial")


def run(options: argparse.Namespace) -> int:
    """Stage, switch, restart."""
    state_dir = find_state_dir(options.state_dir)
    file = VersionsFile(state_dir)
    if options.source is None and not options.back:
        _show(file.load(), as_json=options.json)
        return 0
    if not state_dir.is_dir():
        raise StateError(f"there is no {state_dir}")
    live = read_live(state_dir / "run")
    was_connected = bool(live and live.connected)
    if options.back:
        if options.source is not None:
            raise UsageError("--back takes no wheel")
        version = switch_back(state_dir, was_connected=was_connected)
    else:
        sha256 = _parse_sha256(options.sha256)
        version = switch_version(Path(options.source), sha256, state_dir, again=options.again, was_connected=was_connected)
    told = "the next start of the agent tries it" if options.no_restart else _restart(state_dir)
    if options.json:
        say_json({"version": version, "restart": told})
    else:
        say(f"{f'version {version}' if version else 'the first installation'} is ready: {told}")
    return 0


def collect(versions: Versions) -> dict[str, Any]:
    """Everything as plain values; the empty name is the first installation."""
    trial = versions.trial
    return {
        "current": versions.current,
        "previous": versions.previous,
        "on_trial": trial is not None,
        "starts": trial.starts if trial else 0,
        "failed": versions.failed,
    }


def _restart(state_dir: Path) -> str:
    pid = find_holder(state_dir / "agent.lock")
    if pid is None:
        return "no agent runs; its next start by covey-agent-launch tries it"
    if not _was_launched(pid):
        return f"the agent (process {pid}) was not started by covey-agent-launch and goes on; start it so"
    os.kill(pid, signal.SIGHUP)
    return f"the agent (process {pid}) starts anew with it; covey-agent status tells how it goes"


def _was_launched(pid: int) -> bool:
    """The environment that it was started with says so; SIGHUP would end any other."""
    try:
        return f"{LAUNCHER_VARIABLE}=".encode() in Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return False


def _parse_sha256(text: str | None) -> str:
    if text is None:
        raise UsageError("--sha256 is needed: the digest of the wheel, or of SHA256SUMS, from where the version was published")
    try:
        return parse_digest(text.lower())
    except ContractError as exc:
        raise UsageError(f"--sha256: {exc}") from exc


def _show(versions: Versions, *, as_json: bool) -> None:
    if as_json:
        say_json(collect(versions))
        return
    say(f"current:  {versions.current or 'the first installation'}{' (on trial)' if versions.trial else ''}")
    say(f"previous: {versions.previous or 'the first installation'}")
    for version, reason in versions.failed.items():
        say(f"failed:   {version}: {reason}")
