"""`covey-agent status`: what this agent is and does, from its files; works while the daemon runs and while it does not."""

import argparse
from pathlib import Path
from typing import Any

import msgspec

from covey_agent.adapters.lock import find_holder
from covey_agent.adapters.slot_files import SlotFiles
from covey_agent.adapters.store_sqlite import Database
from covey_agent.commands.output import say, say_json, show_time
from covey_agent.commands.state import load_machine, load_value, open_state
from covey_agent.commands.upgrade import collect as collect_versions
from covey_agent.core.machine import serving_slot
from covey_agent.core.slots import SLOTS, report_slot
from covey_agent.daemon.live import read_live
from covey_agent.identity import load_identity
from covey_agent.settings import find_state_dir
from covey_agent.versions_file import VersionsFile

EXIT_NOT_RUNNING = 7


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("--require-running", action="store_true", help=f"exit with {EXIT_NOT_RUNNING} if the daemon does not run")


def run(options: argparse.Namespace) -> int:
    """Print the status."""
    state_dir = find_state_dir(options.state_dir)
    database = open_state(state_dir)
    status = collect(state_dir, database)
    if database:
        database.close()
    if options.json:
        say_json(status)
    else:
        _say(status)
    return EXIT_NOT_RUNNING if options.require_running and not status["running"] else 0


def collect(state_dir: Path, database: Database | None) -> dict[str, Any]:
    """Everything as plain values."""
    identity = load_identity(state_dir).file
    pid = find_holder(state_dir / "agent.lock")
    live = read_live(state_dir / "run") if pid else None
    machine = load_machine(database)
    slots = SlotFiles(state_dir)
    waiting = database.query("SELECT COUNT(*), COALESCE(SUM(LENGTH(data)), 0), MIN(at) FROM reading") if database else [(0, 0, None)]
    lost = database.query("SELECT COALESCE(SUM(count), 0) FROM lost") if database else [(0,)]
    return {
        "device": identity.device,
        "profile": identity.profile.value,
        "agent_version": live.version if live else "",
        "upgrade": collect_versions(VersionsFile(state_dir).load()),
        "running": pid is not None,
        "pid": pid,
        "connected": bool(live and live.connected),
        "connection": live.connection if live else "",
        "serving": bool(live and live.accepting_slot),
        "serving_slot": serving_slot(machine),
        "training": live.training if live else "",
        "state": machine.state.value,
        "deployment": msgspec.to_builtins(machine.deployment),
        "slots": [msgspec.to_builtins(report_slot(slot, slots.note(slot))) for slot in SLOTS],
        "quarantine": msgspec.to_builtins(machine.quarantine),
        "desired_generation": load_value(database, "floor", int) or 0,
        "readings_on_disk": waiting[0][0],
        "readings_bytes": waiting[0][1],
        "oldest_reading_at": waiting[0][2],
        "readings_lost": lost[0][0],
    }


def _say(status: dict[str, Any]) -> None:
    daemon = f"runs as process {status['pid']}" if status["running"] else "does not run"
    say(f"{status['device']} ({status['profile']}): the agent {daemon}")
    upgrade = status["upgrade"]
    if status["running"]:
        trial = f", on trial, start {upgrade['starts']}" if upgrade["on_trial"] else ""
        say(f"version:    {status['agent_version'] or 'unknown'}{trial}")
    for version, reason in upgrade["failed"].items():
        say(f"            the upgrade to {version} failed: {reason}")
    if status["running"]:
        say(f"broker:     {'connected' if status['connected'] else 'not connected: ' + (status['connection'] or 'unknown')}")
    for slot in status["slots"]:
        mark = "*" if slot["slot"] == status["serving_slot"] else " "
        content = f"{slot['model']} {slot['version']} as {slot['variant']} ({slot['artifact'][:12]})" if slot["artifact"] else "empty"
        say(f"slot {slot['slot']} {mark}   {content}")
    deployment = status["deployment"]
    if deployment:
        name = f"{deployment['model']} {deployment['version']}"
        say(f"deployment: {deployment['id']} of {name}: {status['state']}{': ' + deployment['reason'] if deployment['reason'] else ''}")
        say(f"            since {show_time(deployment['changed_at'])}")
    for entry in status["quarantine"]:
        say(f"quarantine: {entry['digest'][:12]} since {show_time(entry['at'])}: {entry['reason']}")
    if status["training"]:
        say(f"training:   run {status['training']}")
    say(f"readings:   {status['readings_on_disk']} on disk ({status['readings_bytes']} bytes), {status['readings_lost']} lost so far")
