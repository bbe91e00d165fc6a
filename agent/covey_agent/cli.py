"""The `covey-agent` command: dispatches to one module a command, imported only when used, because the daemon stays small.

Exit codes: see `errors.py`; every command takes `--state-dir` and `--json`.
"""

import argparse
import os
import sys
from importlib import import_module

from covey_agent import __version__
from covey_agent.commands.owner import become_owner
from covey_agent.errors import CoveyAgentError
from covey_agent.settings import find_state_dir

COMMANDS = {
    "enroll": "turn an invitation token into this device's identity",
    "run": "run the agent in the foreground",
    "status": "what this agent is and does",
    "doctor": "look for what usually goes wrong, and say what to do",
    "identity": "the certificate: show it, or renew it now",
    "readings": "what waits on disk for the server",
    "quarantine": "what failed here and is not tried again",
    "ledger": "privacy charges, and epsilon recomputed from them",
    "policy": "what this participant allows",
    "data": "which datasets are here",
    "config": "settings with values and meanings",
    "logs": "what the agent wrote",
    "install": "make it a systemd service",
    "uninstall": "end the service and take it away",
    "upgrade": "put a new version of the agent on trial",
}
AS_WHO_CALLS = frozenset({"install", "uninstall", "logs"})  # every other command works as the owner of the state directory
EPILOG = """exit codes: 0 done, 1 a bug, 2 wrong usage, 3 the state directory is not as needed, 4 the server refused,
5 the server cannot be reached, 6 another agent runs on this state directory, 7 not running (status --require-running), 8 decommissioned,
9 the doctor found a problem"""


def main(arguments: list[str] | None = None) -> None:
    """Parse, run one command, exit with its code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = _parse(arguments)
    try:
        if options.command not in AS_WHO_CALLS:
            become_owner(find_state_dir(options.state_dir))
        code = int(import_module(f"covey_agent.commands.{options.command}").run(options))
        sys.stdout.flush()
    except CoveyAgentError as exc:
        sys.stderr.write(f"covey-agent: {exc}\n")
        code = exc.exit_code
    except BrokenPipeError:  # `covey-agent readings | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    raise SystemExit(code)


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="covey-agent", description="Covey's agent for devices and partners.", epilog=EPILOG)
    parser.add_argument("--version", action="version", version=f"covey-agent {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    common = argparse.ArgumentParser(add_help=False, allow_abbrev=False)  # so that these two may stand anywhere in the line
    _add_common(common)
    given, rest = common.parse_known_args(arguments)
    named = next((word for word in rest if not word.startswith("-")), "")
    for name, meaning in COMMANDS.items():
        command = commands.add_parser(name, help=meaning, description=meaning, epilog=EPILOG)
        _add_common(command)
        if name == named:
            import_module(f"covey_agent.commands.{name}").add_arguments(command)
    options = parser.parse_args(rest)
    options.state_dir, options.json = given.state_dir, given.json
    return options


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--state-dir", help="default: $COVEY_AGENT_STATE_DIR or /var/lib/covey-agent")
    parser.add_argument("--json", action="store_true", help="print JSON")


if __name__ == "__main__":
    main()
