"""The device's accountant, against closed forms, a published accountant, and the bound that it must not fall below."""

import math

import pytest
from dp_accounting import dp_event
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant

from covey_agent.core.privacy import ORDERS, Charge, epsilon_of, renyi

CASES = [(1.1, 256 / 60_000, 3515, 1e-5), (1.7, 0.25, 80, 1e-4), (0.6, 0.01, 500, 1e-6), (4.0, 1.0, 20, 1e-5), (8.0, 0.5, 1000, 1e-3)]


def event(noise: float, rate: float) -> dp_event.DpEvent:
    step = dp_event.GaussianDpEvent(noise)
    return step if rate == 1 else dp_event.PoissonSampledDpEvent(rate, step)


@pytest.mark.parametrize(("noise", "rate", "steps", "delta"), CASES)
def test_it_equals_the_reference_at_integer_orders_and_is_no_tighter_than_pld(noise: float, rate: float, steps: int, delta: float) -> None:
    ours = epsilon_of([Charge(noise, rate, steps)], delta)
    reference = RdpAccountant(orders=list(ORDERS))
    reference.compose(event(noise, rate), steps)
    assert ours == pytest.approx(reference.get_epsilon(delta), abs=1e-6)
    tight = PLDAccountant(value_discretization_interval=1e-3)
    tight.compose(event(noise, rate), steps)
    assert ours >= tight.get_epsilon(delta) - 0.02  # the discretised PLD is itself an upper bound


def test_without_sampling_the_divergence_is_the_gaussian_mechanisms() -> None:
    assert renyi(7, 2.0, 1.0) == pytest.approx(7 / (2 * 2.0**2))
    assert renyi(7, 2.0, 1 - 1e-12) == pytest.approx(7 / (2 * 2.0**2), rel=1e-6)


def test_the_second_moment_has_a_closed_form() -> None:
    # E[(1 - q + q e^...)^2] of arXiv:1908.10530 with alpha = 2 is 1 + q^2 (exp(1/z^2) - 1).
    q, z = 0.3, 1.2
    assert renyi(2, z, q) == pytest.approx(math.log(1 + q**2 * (math.exp(1 / z**2) - 1)))


def test_rounds_compose_to_less_than_their_sum_and_in_any_grouping() -> None:
    one, eight = epsilon_of([Charge(1.7, 0.25, 10)], 1e-4), epsilon_of([Charge(1.7, 0.25, 10)] * 8, 1e-4)
    assert one < eight < 8 * one
    assert eight == pytest.approx(epsilon_of([Charge(1.7, 0.25, 80)], 1e-4))


@pytest.mark.parametrize("nothing", [[], [Charge(1.0, 0.5, 0)], [Charge(1.0, 0.0, 10)]])
def test_nothing_costs_nothing(nothing: list[Charge]) -> None:
    assert epsilon_of(nothing, 1e-5) == 0


def test_no_noise_has_no_bound() -> None:
    assert epsilon_of([Charge(1.0, 0.1, 5), Charge(0.0, 0.1, 1)], 1e-5) == math.inf


@pytest.mark.parametrize("charge", [Charge(-1.0, 0.5, 1), Charge(1.0, 1.5, 1), Charge(math.nan, 0.5, 1), Charge(1.0, 0.5, -1)])
def test_impossible_charges_are_refused(charge: Charge) -> None:
    with pytest.raises(ValueError, match="expected noise"):
        epsilon_of([charge], 1e-5)


@pytest.mark.parametrize("delta", [0.0, 1.0, -0.1])
def test_impossible_deltas_are_refused(delta: float) -> None:
    with pytest.raises(ValueError, match="delta"):
        epsilon_of([Charge(1.0, 0.5, 1)], delta)
