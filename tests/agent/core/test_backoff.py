"""Waiting before trying again."""

import pytest

from covey_agent.core.backoff import RECONNECT, Backoff


@pytest.mark.parametrize(("failures", "low", "high"), [(1, 1.0, 1.0), (2, 1.0, 2.0), (5, 8.0, 16.0), (7, 30.0, 60.0), (500, 30.0, 60.0)])
def test_waits_double_up_to_a_minute_with_jitter(failures: int, low: float, high: float) -> None:
    assert RECONNECT.delay_s(failures, lambda: 0.0) == low
    assert RECONNECT.delay_s(failures, lambda: 0.999999) == pytest.approx(high, rel=1e-3)


def test_there_is_no_wait_before_the_first_failure() -> None:
    with pytest.raises(ValueError, match="at least one failure"):
        Backoff(first_s=1, max_s=2).delay_s(0, lambda: 0.5)
