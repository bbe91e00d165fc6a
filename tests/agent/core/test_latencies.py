"""Latencies in buckets, against percentiles of the numbers themselves."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from covey_agent.core.latencies import BASE, add_latencies, count_latencies, percentile_ms

milliseconds = st.lists(st.floats(min_value=0.01, max_value=60_000), min_size=1, max_size=200)


@given(milliseconds, st.sampled_from([0.5, 0.95, 0.99, 1.0]))
def test_a_percentile_is_at_most_two_per_cent_too_high(values: list[float], share: float) -> None:
    exact = sorted(values)[math.ceil(share * len(values)) - 1]
    assert exact * 0.999999 <= percentile_ms(count_latencies(values), share) <= exact * BASE * 1.000001


@given(milliseconds, milliseconds)
def test_windows_add_up_to_what_one_window_would_have_held(first: list[float], second: list[float]) -> None:
    assert add_latencies(count_latencies(first), count_latencies(second)) == count_latencies(first + second)


def test_a_mean_of_percentiles_would_hide_what_the_sum_shows() -> None:
    quiet, slow = count_latencies([1.0] * 99 + [100.0]), count_latencies([100.0] * 10)
    assert percentile_ms(add_latencies(quiet, slow), 0.95) == pytest.approx(100.0, rel=0.021)


def test_nothing_counted_is_nothing() -> None:
    assert percentile_ms({}, 0.95) == 0.0
    assert percentile_ms(count_latencies([0.0]), 0.95) == pytest.approx(0.001, rel=0.021)
