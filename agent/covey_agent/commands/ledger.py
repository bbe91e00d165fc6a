"""`covey-agent ledger`: every privacy charge, and epsilon recomputed from them."""

import argparse

import msgspec

from covey_agent.adapters.store_sqlite import read_charges
from covey_agent.commands.output import say, say_json, say_table, show_time
from covey_agent.commands.state import open_state
from covey_agent.core.policy import NO_GUARANTEE, spent
from covey_agent.core.privacy import epsilon_of
from covey_agent.settings import find_state_dir, load_consent

DEFAULT_DELTA = 1e-5  # for a dataset that was used and has no budget any more


def add_arguments(_parser: argparse.ArgumentParser) -> None:
    """No options of its own."""


def run(options: argparse.Namespace) -> int:
    """Print charges and sums."""
    state_dir = find_state_dir(options.state_dir)
    database = open_state(state_dir)
    charges = read_charges(database) if database else []
    if database:
        database.close()
    budgets = load_consent(state_dir).policy.budgets
    sums = []
    for dataset in sorted({charge.dataset for charge in charges} | set(budgets)):
        budget = budgets.get(dataset)
        delta = budget.delta if budget else DEFAULT_DELTA
        epsilon = spent(charges, dataset, delta, epsilon_of)
        rounds = sum(charge.dataset == dataset for charge in charges)
        sums.append(
            {"dataset": dataset, "epsilon": epsilon, "delta": delta, "budget": budget.epsilon if budget else None, "rounds": rounds}
        )
    if options.json:
        say_json({"charges": msgspec.to_builtins(charges), "datasets": sums})
        return 0
    rows = [
        (
            show_time(charge.at),
            charge.run,
            charge.round,
            charge.dataset,
            charge.plan.noise_multiplier,
            charge.plan.sample_rate,
            charge.plan.steps,
        )
        for charge in charges
    ]
    say_table(rows, ("at", "run", "round", "dataset", "noise", "sample rate", "steps"))
    for row in sums:
        shown = "no guarantee" if row["epsilon"] == NO_GUARANTEE else f"{row['epsilon']:.3f}"
        say(f"{row['dataset']}: epsilon {shown} of {row['budget']} at delta {row['delta']:g}, {row['rounds']} rounds")
    return 0
