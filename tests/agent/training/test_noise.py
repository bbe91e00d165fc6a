"""Noise has the distribution that accounting assumes. The draws cannot be seeded, so bounds are set where a sound generator fails
once in a billion runs or less."""

import numpy as np
import pytest
from scipy import stats  # type: ignore[import-untyped]  # scipy publishes no types

from covey_agent.workers.training import noise

N = 200_000
KOLMOGOROV = 3.3 / np.sqrt(N)  # P(D > this) = 2 exp(-2 * 3.3^2) < 1e-9


def test_noise_is_normal_with_the_standard_deviation_asked_for() -> None:
    drawn = noise.draw_noise(N, std=2.5)
    assert stats.kstest(drawn, "norm", args=(0, 2.5)).statistic < KOLMOGOROV
    low, high = stats.chi2.ppf([1e-10, 1 - 1e-10], N)
    assert low < float(np.sum((drawn / 2.5) ** 2)) < high


def test_tails_are_as_heavy_as_they_should_be() -> None:
    beyond = int(np.sum(np.abs(noise.draw_noise(N, std=1.0)) > 3))
    assert stats.binom.ppf(1e-10, N, 2 * stats.norm.sf(3)) <= beyond <= stats.binom.ppf(1 - 1e-10, N, 2 * stats.norm.sf(3))


def test_neighbouring_values_are_independent() -> None:
    drawn = noise.draw_normal(N)
    half = N // 2
    for pair in ((drawn[:-1], drawn[1:]), (drawn[:half], drawn[half:])):  # Box and Muller make them in two halves
        assert abs(float(np.corrcoef(*pair)[0, 1])) < 6.2 / np.sqrt(half)


def test_every_draw_is_new() -> None:
    assert len(np.unique(np.concatenate([noise.draw_noise(1000, std=1.0) for _ in range(4)]))) == 4000


def test_uniform_values_never_reach_the_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.urandom", lambda count: b"\x00" * (count // 2) + b"\xff" * (count - count // 2))
    drawn = noise.draw_uniform(2)
    assert 0 < drawn[0] < drawn[1] < 1
    assert np.isfinite(np.log(drawn)).all()


def test_uniform_values_are_uniform() -> None:
    assert stats.kstest(noise.draw_uniform(N), "uniform").statistic < KOLMOGOROV


@pytest.mark.parametrize("rate", [0.05, 0.25, 1.0])
def test_a_sample_takes_each_row_with_the_rate(rate: float) -> None:
    rows = noise.draw_sample(N, rate=rate)
    assert stats.binom.ppf(1e-10, N, rate) <= len(rows) <= stats.binom.ppf(1 - 1e-10, N, rate)
    assert len(np.unique(rows)) == len(rows)


def test_an_odd_number_of_values_is_possible() -> None:
    assert noise.draw_noise(7, std=1.0).shape == (7,)
    assert noise.draw_noise(0, std=1.0).shape == (0,)
