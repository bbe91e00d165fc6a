"""Epsilon from mechanisms, by privacy loss distributions: the number that the ledger shows.

    epsilon_of([Mechanism(noise_multiplier=1.7, sample_rate=0.25, steps=80)], delta=1e-4)   # 6.18

PLD accounting (dp-accounting, pessimistic discretisation) is an upper bound and nearly exact; the devices' own guard
(`covey_agent.core.privacy`, Renyi) is a looser upper bound of the same. Neighbouring datasets differ by one record that is there
or not. Composition takes 0.1 s and a hundred MB, so results are kept by what they depend on: the multiset of mechanisms, and delta.
"""

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from covey_server.errors import InvalidInputError

_DISCRETISATION = 5e-4  # of the privacy loss; the error of epsilon stays below 0.001 for thousands of steps (measured against 1e-4)
_KEPT_RESULTS = 2048


@dataclass(frozen=True, slots=True, order=True)
class Mechanism:
    """`steps` uses of a Gaussian mechanism on a Poisson sample. `noise_multiplier` 0 means no protection at all."""

    noise_multiplier: float  # standard deviation / sensitivity
    sample_rate: float
    steps: int


def epsilon_of(mechanisms: Iterable[Mechanism], *, delta: float) -> float:
    """Epsilon at `delta` of everything together; 0 for nothing, infinite where there is no noise. Raises InvalidInputError."""
    if not 0 < delta < 1:
        raise InvalidInputError(f"delta must be between 0 and 1, got {delta}")
    steps: Counter[tuple[float, float]] = Counter()
    for mechanism in mechanisms:
        if not (mechanism.noise_multiplier >= 0 and 0 <= mechanism.sample_rate <= 1 and mechanism.steps >= 0):
            raise InvalidInputError(f"expected noise >= 0, a sample rate within 0..1 and steps >= 0, got {mechanism}")
        if mechanism.steps and mechanism.sample_rate:
            steps[mechanism.noise_multiplier, mechanism.sample_rate] += mechanism.steps
    if not steps:
        return 0.0
    if any(noise == 0 for noise, _ in steps):
        return math.inf
    return _compose(tuple(sorted((noise, rate, count) for (noise, rate), count in steps.items())), delta)


@lru_cache(maxsize=_KEPT_RESULTS)
def _compose(used: tuple[tuple[float, float, int], ...], delta: float) -> float:
    from dp_accounting import dp_event  # noqa: PLC0415 - scipy with it; only programs that account pay for the import
    from dp_accounting.pld import PLDAccountant  # noqa: PLC0415 - see above

    accountant = PLDAccountant(value_discretization_interval=_DISCRETISATION)
    for noise, rate, count in used:
        step = dp_event.GaussianDpEvent(noise)
        sampled = step if rate == 1 else dp_event.PoissonSampledDpEvent(rate, step)
        accountant.compose(sampled, count)
    return float(accountant.get_epsilon(delta))
