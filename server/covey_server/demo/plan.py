"""The private run of the demo: how much noise for so many rounds. What was tried, with figures, is in docs/privacy.md."""

import math
from typing import Any

from covey_server.privacy.accounting import Mechanism, epsilon_of

DELTA = 1e-4  # below 1/n of every participant's n records
BUDGET = 8.0  # what every participant but one allows
HYPERPARAMETERS = {"learning_rate": 6.0}
_STEPS = 10  # a round
_SAMPLE_RATE = 0.25
_CLIPPING_NORM = 1.0
_NOISE_FOR_8_ROUNDS = 1.7
_TARGET = 6.9  # epsilon by PLD; the participants' own, more careful RDP figure then stays below BUDGET


def mechanism(rounds: int) -> dict[str, Any]:
    """The plan of each round, so that all rounds together cost about `_TARGET`."""
    noise = round(_NOISE_FOR_8_ROUNDS * math.sqrt(rounds / 8), 2)
    while _cost(noise, rounds) > _TARGET:
        noise = round(noise * 1.05 + 0.01, 2)
    return {
        "level": "record",
        "noise_multiplier": noise,
        "clipping_norm": _CLIPPING_NORM,
        "sample_rate": _SAMPLE_RATE,
        "steps": _STEPS,
        "delta": DELTA,
    }


def tight_budget(after_round: list[float]) -> float:
    """A budget that the first round fits into and the last does not, given the planner's epsilon after each round.

    Participants account by RDP, which says about an eighth more than the planner's PLD.
    """
    return round(1.125 * (after_round[0] + after_round[-1]) / 2, 2)


def _cost(noise: float, rounds: int) -> float:
    return epsilon_of([Mechanism(noise_multiplier=noise, sample_rate=_SAMPLE_RATE, steps=_STEPS * rounds)], delta=DELTA)
