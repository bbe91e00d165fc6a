"""`covey-agent policy show|allow-task|set-budget`: this participant's own rules, in agent.toml; the daemon reads them again at once."""

import argparse
import hashlib
import math
from pathlib import Path

import msgspec

from covey_agent.commands.output import say, say_json
from covey_agent.core.policy import policy_hash
from covey_agent.errors import StateError, UsageError
from covey_agent.settings import find_state_dir, load_consent
from covey_agent.settings_file import set_value
from covey_contract.errors import ContractError
from covey_contract.ids import parse_name

MAX_TASK_BYTES = 5_000_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The actions."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    actions.add_parser("show", help="print the rules")
    allow = actions.add_parser("allow-task", help="allow a task's code, after having read it: its sha256 is listed")
    allow.add_argument("file", help="the task's Python file, exactly as the server publishes it")
    budget = actions.add_parser("set-budget", help="what a dataset may cost in all")
    budget.add_argument("dataset")
    budget.add_argument("epsilon", type=float)
    budget.add_argument("--delta", type=float, required=True, help="at most 1/n for n records")


def run(options: argparse.Namespace) -> int:
    """Show or change the policy."""
    state_dir = find_state_dir(options.state_dir)
    match options.action:
        case "allow-task":
            digest = _digest_file(Path(options.file))
            tasks = list(load_consent(state_dir).policy.tasks)
            set_value(state_dir, "policy", "tasks", [*tasks, digest] if digest not in tasks else tasks)
            _confirm(options, f"allowed task {digest}", {"task": digest})
        case "set-budget":
            dataset = _parse_dataset(options.dataset)
            if not 0 < options.delta < 1 or not math.isfinite(options.epsilon) or options.epsilon < 0:
                raise UsageError(f"expected epsilon >= 0 and 0 < delta < 1, got {options.epsilon} and {options.delta}")
            set_value(state_dir, f"policy.budgets.{dataset}", "epsilon", options.epsilon, also={"delta": options.delta})
            values = {"dataset": dataset, "epsilon": options.epsilon, "delta": options.delta}
            _confirm(options, f"{dataset} may cost epsilon {options.epsilon:g} at delta {options.delta:g}", values)
        case _:
            _show(options, state_dir)
    return 0


def _show(options: argparse.Namespace, state_dir: Path) -> None:
    consent = load_consent(state_dir)
    policy = consent.policy
    if options.json:
        say_json({"policy": msgspec.to_builtins(policy), "hash": policy_hash(policy), "datasets": dict(consent.datasets)})
        return
    say(f"consent:     {'yes' if policy.consent else 'no'}")
    say(f"tasks:       {', '.join(policy.tasks) or 'none is allowed'}")
    say(f"purposes:    {', '.join(policy.purposes) or 'any'}")
    say(f"hours:       {', '.join(f'{begin:%H:%M}-{end:%H:%M}' for begin, end in policy.hours) or 'any'}")
    say(f"unprotected: {'allowed' if policy.unprotected else 'refused'}")
    for dataset, budget in policy.budgets.items():
        say(f"budget:      {dataset}: epsilon {budget.epsilon:g} at delta {budget.delta:g}")
    for name, path in consent.datasets.items():
        say(f"dataset:     {name}: {path}")


def _confirm(options: argparse.Namespace, text: str, values: dict[str, object]) -> None:
    if options.json:
        say_json(values)
    else:
        say(text)


def _digest_file(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_TASK_BYTES + 1)
    except OSError as exc:
        raise StateError(f"cannot read {path}: {exc.strerror}") from exc
    if len(data) > MAX_TASK_BYTES:
        raise UsageError(f"{path} is larger than {MAX_TASK_BYTES} bytes: is it a task's code?")
    return hashlib.sha256(data).hexdigest()


def _parse_dataset(name: str) -> str:
    try:
        return parse_name(name, "dataset")
    except ContractError as exc:
        raise UsageError(str(exc)) from exc
