"""`covey-agent identity`: who this device is and how long its certificate lasts; `identity renew` asks for a new one now."""

import argparse
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec

from covey_agent.adapters.lock import find_holder
from covey_agent.adapters.renewal_files import pending_dir
from covey_agent.commands.output import say, say_json, show_time
from covey_agent.core.jobs import RenewalFailed, RenewalInstalled, RenewalRefused, RenewJob
from covey_agent.errors import RefusedByServerError, StateError, UnreachableError
from covey_agent.identity import Identity, load_identity
from covey_agent.settings import find_state_dir, load_settings

CHILD_TIMEOUT_S = 120.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("action", nargs="?", choices=["show", "renew"], default="show", help="default: show")


def run(options: argparse.Namespace) -> int:
    """Show, or renew."""
    state_dir = find_state_dir(options.state_dir)
    identity = load_identity(state_dir)
    if options.action == "renew":
        told = renew(state_dir, identity)
        if options.json:
            say_json({"device": identity.file.device, "renewal": told})
        else:
            say(told)
        return 0
    shown = collect(state_dir, identity)
    if options.json:
        say_json(shown)
    else:
        _say(shown)
    return 0


def collect(state_dir: Path, identity: Identity) -> dict[str, Any]:
    """Everything as plain values."""
    validity, current, now = identity.validity(), identity.current, time.time_ns() // 1_000_000
    return {
        "device": identity.file.device,
        "profile": identity.file.profile.value,
        "server": identity.file.url,
        "mqtt": f"{identity.file.mqtt_host}:{identity.file.mqtt_port}",
        "ca_fingerprint": identity.file.ca_fingerprint,
        "enrolled_at": identity.file.enrolled_at,
        "serial": validity.serial if validity else "",
        "not_before": validity.not_before if validity else None,
        "not_after": validity.not_after if validity else None,
        "days_left": round(validity.days_left(now), 1) if validity else None,
        "renewed_from": validity.renew_at(0.0) if validity else None,
        "generation": current.generation,
        "proven": current.proven,
        "pending": pending_dir(identity.folder).is_dir(),
        "on_expiry": load_settings(state_dir, os.environ).identity.on_expiry,
    }


def renew(state_dir: Path, identity: Identity) -> str:
    """Ask the running agent, or do it here by the server's HTTPS edge. Raises CoveyAgentError."""
    pid = find_holder(state_dir / "agent.lock")
    if pid is not None:
        os.kill(pid, signal.SIGUSR1)
        return f"the agent (process {pid}) was asked to renew; `covey-agent identity` tells when it has"
    job = RenewJob(step="online", identity_dir=str(identity.folder), device=identity.file.device, url=identity.file.url)
    command = [sys.executable, "-m", "covey_agent.workers.renew"]
    done = subprocess.run(command, input=msgspec.json.encode(job) + b"\n", capture_output=True, timeout=CHILD_TIMEOUT_S, check=False)
    try:
        event = msgspec.json.decode(done.stdout, type=RenewalInstalled | RenewalRefused | RenewalFailed)
    except msgspec.DecodeError as exc:
        raise StateError(f"the renew child failed: {done.stderr.decode('utf-8', 'replace').strip()[-300:]}") from exc
    match event:
        case RenewalInstalled():
            return f"certificate {event.generation} is installed; the agent tries it when it starts"
        case RenewalRefused():
            raise RefusedByServerError(event.reason)
        case _:
            raise UnreachableError(event.reason)


def _say(shown: dict[str, Any]) -> None:
    say(f"{shown['device']} ({shown['profile']}), enrolled {show_time(shown['enrolled_at'])} at {shown['server']}")
    if shown["not_after"] is None:
        say("certificate: unreadable")
        return
    state = "expired" if shown["days_left"] <= 0 else f"{shown['days_left']:g} days left"
    say(f"certificate: {shown['serial']}, {show_time(shown['not_before'])} to {show_time(shown['not_after'])}: {state}")
    say(f"renewal:     by itself from {show_time(shown['renewed_from'])}; after expiry: {shown['on_expiry']}")
    if not shown["proven"]:
        say(f"             number {shown['generation']} is installed and has not connected yet; the one before is tried in turn")
    if shown["pending"]:
        say("             a fresh key waits for its certificate")
