"""What rounds of DP-SGD have cost so far: Renyi accounting of the Poisson-subsampled Gaussian mechanism, in plain Python.

    epsilon_of([Charge(noise_multiplier=1.7, sample_rate=0.25, steps=10)] * 8, delta=1e-4)   # 6.9

This is the device's own guard: cheap, exact at integer orders, and never below the truth. The server's record is tighter (PLD,
`covey_server.privacy`), so a device says stop no later than the server would. Neighbouring datasets differ by one record that
is there or not.

Sources: Mironov, Talwar, Zhang, "Renyi Differential Privacy of the Sampled Gaussian Mechanism", arXiv:1908.10530, section 3.3
(integer orders); Canonne, Kamath, Steinke, "The Discrete Gaussian", arXiv:2004.00010, proposition 12 (to epsilon).
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

ORDERS = (*range(2, 64), 72, 80, 96, 112, 128, 160, 192, 256, 384, 512)


@dataclass(frozen=True, slots=True)
class Charge:
    """`steps` uses of a Gaussian mechanism on a Poisson sample."""

    noise_multiplier: float  # standard deviation / sensitivity, > 0
    sample_rate: float  # probability of each record to be in a step's sample, 0..1
    steps: int


def epsilon_of(charges: Sequence[Charge], delta: float) -> float:
    """An upper bound of epsilon, at `delta` (0 < delta < 1), of all charges together; 0 for none."""
    if not 0 < delta < 1:
        raise ValueError(f"expected 0 < delta < 1, got {delta}")
    steps: Counter[tuple[float, float]] = Counter()
    for charge in charges:
        _check(charge)
        steps[charge.noise_multiplier, charge.sample_rate] += charge.steps
    used = [(noise, rate, count) for (noise, rate), count in steps.items() if count and rate]
    if not used:
        return 0.0
    if any(noise == 0 for noise, _, _ in used):
        return math.inf
    return min(_to_epsilon(order, math.fsum(count * renyi(order, noise, rate) for noise, rate, count in used), delta) for order in ORDERS)


@lru_cache(maxsize=4096)
def renyi(order: int, noise_multiplier: float, sample_rate: float) -> float:
    """The Renyi divergence of integer `order` >= 2 of one step. arXiv:1908.10530, section 3.3."""
    if sample_rate == 1:
        return order / (2 * noise_multiplier**2)  # the Gaussian mechanism itself
    log_q, log_rest = math.log(sample_rate), math.log1p(-sample_rate)
    terms = [
        _log_binomial(order, k) + k * log_q + (order - k) * log_rest + (k * k - k) / (2 * noise_multiplier**2) for k in range(order + 1)
    ]
    largest = max(terms)
    log_moment = largest + math.log(math.fsum(math.exp(term - largest) for term in terms))
    return max(0.0, log_moment) / (order - 1)


def _to_epsilon(order: int, divergence: float, delta: float) -> float:
    """arXiv:2004.00010, proposition 12."""
    return max(0.0, divergence + math.log1p(-1 / order) - math.log(delta * order) / (order - 1))


def _log_binomial(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def _check(charge: Charge) -> None:
    if not (0 <= charge.noise_multiplier < math.inf and 0 <= charge.sample_rate <= 1 and charge.steps >= 0):
        raise ValueError(f"expected noise >= 0, a rate within 0..1 and steps >= 0, got {charge}")
