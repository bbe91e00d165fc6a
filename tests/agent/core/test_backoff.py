"""Waiting before trying again."""

import heapq
import random

import pytest

from covey_agent.core.backoff import Backoff, reconnect_backoff


@pytest.mark.parametrize(("failures", "low", "high"), [(1, 1.0, 1.0), (2, 1.0, 2.0), (5, 8.0, 16.0), (7, 30.0, 60.0), (500, 30.0, 60.0)])
def test_waits_double_up_to_a_minute_with_jitter(failures: int, low: float, high: float) -> None:
    backoff = Backoff(first_s=1.0, max_s=60.0)
    assert backoff.delay_s(failures, lambda: 0.0) == low
    assert backoff.delay_s(failures, lambda: 0.999999) == pytest.approx(high, rel=1e-3)


@pytest.mark.parametrize(("failures", "low", "high"), [(1, 0.2, 4.0), (2, 0.4, 8.0), (6, 3.0, 60.0), (500, 3.0, 60.0)])
def test_nearly_the_whole_wait_for_a_broker_is_drawn(failures: int, low: float, high: float) -> None:
    backoff = reconnect_backoff(4.0)
    assert backoff.delay_s(failures, lambda: 0.0) == pytest.approx(low)
    assert backoff.delay_s(failures, lambda: 0.999999) == pytest.approx(high, rel=1e-3)


def test_there_is_no_wait_before_the_first_failure() -> None:
    with pytest.raises(ValueError, match="at least one failure"):
        Backoff(first_s=1, max_s=2).delay_s(0, lambda: 0.5)


@pytest.mark.parametrize(("devices", "spread_s"), [(1_000, 4.0), (10_000, 60.0)])
def test_a_fleet_that_lost_its_broker_comes_back_without_a_storm(devices: int, spread_s: float) -> None:
    """A broker that takes 200 handshakes a second (5 ms of CPU each) and refuses the rest, as one with a full queue does."""
    draw, backoff, taken_per_s = random.Random(7).random, reconnect_backoff(spread_s), 200
    attempts = [(backoff.delay_s(1, draw), 1) for _ in range(devices)]
    heapq.heapify(attempts)
    taken: dict[int, int] = {}
    tried, last_s = 0, 0.0
    while attempts:
        at, failures = heapq.heappop(attempts)
        tried += 1
        if taken.get(int(at), 0) < taken_per_s:
            taken[int(at)] = taken.get(int(at), 0) + 1
            last_s = at
        else:
            heapq.heappush(attempts, (at + backoff.delay_s(failures + 1, draw), failures + 1))
    assert tried < 2.0 * devices  # few are refused, so nearly all of the broker's work counts
    assert last_s < 5 * max(devices / taken_per_s, spread_s)  # and nobody waits much longer than the work takes
