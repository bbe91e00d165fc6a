"""Draw docs/deployment-states.md from the table that the agent runs on.

    python -m scripts.deployment_states            # write it
    python -m scripts.deployment_states --check    # exit with 1 if it is stale

The meanings of states, events and actions are the comments beside them in the code, so that there is one place to change.
"""

import argparse
import inspect
import re
import sys
from collections.abc import Iterable
from enum import Enum
from pathlib import Path

from covey_agent.core import machine
from covey_agent.core.machine import BLAMING, IN_FLIGHT, MAX_BOOTS, MAX_DEPLOY_CRASHES, RESTING, TABLE, Action, Event
from covey_contract.messages import DeploymentState

TARGET = Path(__file__).parents[1] / "docs" / "deployment-states.md"
_MEMBER = re.compile(r'^    ([A-Z_]+) = "[a-z_]+"(?:  # (.+))?$', re.MULTILINE)
_SAME = "(stays)"


def main() -> int:
    """Write or compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing, exit with 1 if the file is stale")
    text = render()
    if parser.parse_args().check:
        return 0 if TARGET.read_text("utf-8") == text else 1
    TARGET.write_text(text, "utf-8")
    return 0


def render() -> str:
    """The whole page."""
    rules = inspect.cleandoc(machine.__doc__ or "").partition("Rules:\n")[2]
    return "\n".join(
        [
            "# The states of a deployment",
            "",
            "Drawn from `agent/covey_agent/core/machine.py` by `python -m scripts.deployment_states`; a test fails if this page is stale.",
            "Every transition is persisted before its actions are carried out, so `booted` is an event like any other.",
            "",
            rules.strip(),
            "",
            "## The picture",
            "",
            "```mermaid",
            *_diagram(),
            "```",
            "",
            "## The table",
            "",
            "A pair that is not listed is a bug: it is logged, raised as an alarm, and changes nothing.",
            "",
            "| state | event | next state | actions, in order |",
            "|---|---|---|---|",
            *_rows(),
            "",
            "## Loops that are broken",
            "",
            f"- `booted` becomes `booted_again` after {MAX_BOOTS} starts without progress, `deploy_died` becomes `deploy_died_again`",
            f"  at the {MAX_DEPLOY_CRASHES}rd death of the deploy child. Both counts are part of the persisted machine.",
            f"- Events that put the digest in quarantine: {_names(BLAMING)}.",
            f"- In flight: {_names(IN_FLIGHT)}. At rest: {_names(RESTING)}.",
            "",
            "## Events",
            "",
            *_meanings(Event),
            "",
            "## Actions",
            "",
            *_meanings(Action),
            "",
        ]
    )


def _diagram() -> list[str]:
    """One arrow for each pair of states, labelled with the events that take it; events that change nothing are left to the table."""
    arrows: dict[tuple[DeploymentState, DeploymentState], list[str]] = {}
    for (state, event), (target, _) in TABLE.items():
        if state is not target:
            arrows.setdefault((state, target), []).append(event.value)
    lines = ["stateDiagram-v2", f"    [*] --> {DeploymentState.IDLE.value}"]
    lines += [f"    {source.value} --> {target.value}: {', '.join(events)}" for (source, target), events in arrows.items()]
    return lines


def _rows() -> list[str]:
    rows = []
    for (state, event), (target, actions) in TABLE.items():
        after = _SAME if target is state else f"`{target.value}`"
        does = ", ".join(f"`{action.value}`" for action in actions) or "none"
        rows.append(f"| `{state.value}` | `{event.value}` | {after} | {does} |")
    return rows


def _meanings(kind: type[Enum]) -> list[str]:
    comments = dict(_MEMBER.findall(inspect.getsource(kind)))
    lines = ["| name | meaning |", "|---|---|"]
    for member in kind:
        lines.append(f"| `{member.value}` | {comments.get(member.name) or member.value.replace('_', ' ')} |")
    return lines


def _names(members: Iterable[Enum]) -> str:
    return ", ".join(f"`{name}`" for name in sorted(str(member.value) for member in members))


if __name__ == "__main__":
    sys.exit(main())
