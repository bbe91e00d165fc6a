"""Options that every command takes, before or after its action."""

import argparse


def add_common(parser: argparse.ArgumentParser, *, nested: bool = False) -> None:
    """`--state-dir` and `--json`; `nested`: for an action's own parser, where an absent option must not hide an earlier one."""
    meaning = "default: $COVEY_AGENT_STATE_DIR or /var/lib/covey-agent"
    parser.add_argument("--state-dir", default=argparse.SUPPRESS if nested else None, help=meaning)
    parser.add_argument("--json", action="store_true", default=argparse.SUPPRESS if nested else False, help="print JSON")
