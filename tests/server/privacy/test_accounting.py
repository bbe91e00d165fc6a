"""Epsilon in the ledger, against closed forms, published values and an independent accountant."""

import math

import pytest
from scipy import optimize, stats  # type: ignore[import-untyped]  # scipy publishes no types

from covey_server.errors import InvalidInputError
from covey_server.privacy.accounting import Mechanism, epsilon_of


def gaussian_epsilon(noise: float, delta: float) -> float:
    """Exact epsilon of one Gaussian mechanism: Balle and Wang, theorem 8 of arXiv:1805.06530."""

    def excess(epsilon: float) -> float:
        a, b = 1 / (2 * noise), epsilon * noise
        return float(stats.norm.cdf(a - b) - math.exp(epsilon) * stats.norm.cdf(-a - b)) - delta

    return float(optimize.brentq(excess, 0, 200))


@pytest.mark.parametrize(("noise", "steps", "delta"), [(1.0, 1, 1e-5), (3.0, 1, 1e-4), (2.0, 16, 1e-5), (10.0, 100, 1e-6)])
def test_without_sampling_it_is_the_analytic_gaussian_mechanism(noise: float, steps: int, delta: float) -> None:
    # n uses of noise z are one use of noise z / sqrt(n).
    exact = gaussian_epsilon(noise / math.sqrt(steps), delta)
    found = epsilon_of([Mechanism(noise, 1.0, steps)], delta=delta)
    assert exact - 1e-9 <= found <= exact + 0.01


def test_it_agrees_with_an_independent_accountant_on_the_usual_mnist_example() -> None:
    # prv-accountant 0.2.0 gives 1.124 to 1.144 for 256 of 60 000 at noise 1.1, 3 515 steps, delta 1e-5.
    assert 1.124 <= epsilon_of([Mechanism(1.1, 256 / 60_000, 3515)], delta=1e-5) <= 1.144


def test_mechanisms_compose_in_any_grouping_and_order() -> None:
    grouped = epsilon_of([Mechanism(1.7, 0.25, 30), Mechanism(2.0, 0.5, 10)], delta=1e-4)
    scattered = epsilon_of([Mechanism(1.7, 0.25, 10), Mechanism(2.0, 0.5, 10), Mechanism(1.7, 0.25, 20)], delta=1e-4)
    assert grouped == scattered


def test_more_costs_more() -> None:
    once, twice = (epsilon_of([Mechanism(1.7, 0.25, steps)], delta=1e-4) for steps in (10, 20))
    assert 0 < once < twice < 2 * once


def test_nothing_costs_nothing_and_no_noise_has_no_bound() -> None:
    assert epsilon_of([], delta=1e-5) == 0
    assert epsilon_of([Mechanism(0.0, 1.0, 0)], delta=1e-5) == 0
    assert epsilon_of([Mechanism(0.0, 1.0, 1)], delta=1e-5) == math.inf


@pytest.mark.parametrize("bad", [Mechanism(-1.0, 0.5, 1), Mechanism(1.0, 1.5, 1), Mechanism(math.nan, 0.5, 1)])
def test_impossible_mechanisms_are_refused(bad: Mechanism) -> None:
    with pytest.raises(InvalidInputError):
        epsilon_of([bad], delta=1e-5)


@pytest.mark.parametrize("delta", [0.0, 1.0, -1.0])
def test_impossible_deltas_are_refused(delta: float) -> None:
    with pytest.raises(InvalidInputError):
        epsilon_of([], delta=delta)
