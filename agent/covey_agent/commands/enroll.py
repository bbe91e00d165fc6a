"""`covey-agent enroll`."""

import argparse
import time

from covey_agent.adapters.enrolment import enrol, parse_token
from covey_agent.adapters.lock import StateLock
from covey_agent.commands.output import say, say_json
from covey_agent.settings import find_state_dir
from covey_contract.messages import Profile


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("--token", required=True, help="invitation token, covey1.…, as printed by `covey device invite`")
    parser.add_argument("--profile", choices=[profile.value for profile in Profile], default=Profile.DEVICE.value, help="default: device")

    parser.add_argument("--replace", action="store_true", help="a new identity for this same device; models, readings and ledger stay")


def run(options: argparse.Namespace) -> int:
    """Enrol this state directory."""
    state_dir = find_state_dir(options.state_dir)
    profile = Profile(options.profile)
    token = parse_token(options.token)
    lock = StateLock.acquire(state_dir / "agent.lock") if options.replace and state_dir.is_dir() else None
    try:
        identity = enrol(token, state_dir, profile=profile, now_ms=time.time_ns() // 1_000_000, replace=options.replace)
    finally:
        if lock is not None:
            lock.release()
    if options.json:
        say_json(
            {
                "device": identity.device,
                "profile": identity.profile.value,
                "state_dir": str(state_dir),
                "mqtt": f"{identity.mqtt_host}:{identity.mqtt_port}",
                "fleet_api": identity.fleet_api,
            }
        )
    else:
        say(f"enrolled as {identity.device} ({identity.profile.value}) in {state_dir}")
        say(f"start it with: covey-agent run --state-dir {state_dir}")
    return 0
