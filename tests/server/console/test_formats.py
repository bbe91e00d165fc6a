"""How values are written."""

from datetime import UTC, datetime, timedelta
from math import inf

import pytest

from covey_server.console import formats

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("age", "text"),
    [
        (timedelta(seconds=1), "just now"),
        (timedelta(seconds=42), "42 s ago"),
        (timedelta(minutes=3, seconds=50), "3 min ago"),
        (timedelta(hours=25), "1 d ago"),
        (timedelta(hours=-2), "in 2 h"),
    ],
)
def test_relative_times_are_rounded_down(age: timedelta, text: str) -> None:
    assert formats.ago(NOW - age, now=NOW) == text


def test_a_moment_that_never_was_is_told_so() -> None:
    assert formats.ago(None, now=NOW) == "never"


@pytest.mark.parametrize(("value", "text"), [(2.981, "2.99"), (2.98, "2.98"), (0.0, "0.00"), (inf, "∞")])
def test_epsilon_is_never_told_smaller_than_it_is(value: float, text: str) -> None:
    assert formats.epsilon(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.412, "412 ms"), (7.25, "7.2 s"), (59, "59 s"), (60, "1 min"), (61, "1 min 1 s"), (3600, "1 h"), (90000, "1 d 1 h"), (inf, "–")],  # noqa: RUF001 - the dash that stands for nothing
)
def test_durations_have_two_units_at_most(seconds: float, text: str) -> None:
    assert formats.duration(seconds) == text


@pytest.mark.parametrize(("count", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KB"), (171_233, "167 KB"), (5 * 1024**4, "5.0 TB")])
def test_sizes_are_in_units_of_1024(count: int, text: str) -> None:
    assert formats.size(count) == text


@pytest.mark.parametrize(("value", "text"), [(1e-4, "1e-4"), (2.5e-6, "2.5e-6"), (0.0, "0")])
def test_delta_is_short(value: float, text: str) -> None:
    assert formats.delta(value) == text


@pytest.mark.parametrize(("share", "text"), [(-0.09, "−9.0 points"), (0.004, "+0.4 points"), (0.0, "±0.0 points")])  # noqa: RUF001 - a true minus sign
def test_differences_of_shares_carry_their_sign(share: float, text: str) -> None:
    assert formats.points(share) == text
