"""What is believed of a wall clock: 1970, jumps back and forth, years in a drawer."""

import pytest

from covey_agent.core.walltime import BUILD_MS, DAY_MS, MAX_AWAY_MS, ClockState, WallTime

NOW = BUILD_MS + 100 * DAY_MS


def test_a_clock_before_what_has_been_is_not_set() -> None:
    assert WallTime(0).look(1, 0.0) is ClockState.BEHIND
    assert WallTime(0).look(BUILD_MS - 1, 0.0) is ClockState.BEHIND
    assert WallTime(NOW).look(NOW - 1, 0.0) is ClockState.BEHIND


def test_a_clock_that_is_set_later_is_believed() -> None:
    wall = WallTime(NOW)
    assert wall.look(1, 0.0) is ClockState.BEHIND
    assert wall.look(NOW + 30 * DAY_MS, 60.0) is ClockState.SET


@pytest.mark.parametrize("days", [2, 365, 4000])
def test_a_jump_ahead_is_not_believed_until_a_connection_confirms_it(days: int) -> None:
    wall = WallTime(NOW)
    assert wall.look(NOW + 1000, 0.0) is ClockState.SET
    ahead = NOW + days * DAY_MS
    assert wall.look(ahead, 10.0) is ClockState.AHEAD
    assert wall.look(NOW + 21_000, 20.0) is ClockState.SET  # and back again
    assert wall.look(ahead, 30.0) is ClockState.AHEAD
    wall.confirm(ahead, 30.0)
    assert wall.look(ahead + 1000, 31.0) is ClockState.SET


def test_hours_of_sleep_are_believed() -> None:
    wall = WallTime(NOW)
    for hour in range(1, 100, 12):
        assert wall.look(NOW + hour * 3_600_000, float(hour)) is ClockState.SET


def test_a_start_after_months_is_believed_and_after_decades_is_not() -> None:
    assert WallTime(NOW).look(NOW + 300 * DAY_MS, 0.0) is ClockState.SET
    assert WallTime(NOW).look(NOW + MAX_AWAY_MS + 1, 0.0) is ClockState.AHEAD
    assert WallTime(0).look(NOW + 4000 * DAY_MS, 0.0) is ClockState.SET  # its first start: there is nothing to compare with


def test_a_time_before_the_floor_is_never_confirmed() -> None:
    wall = WallTime(NOW)
    wall.confirm(5, 0.0)
    assert wall.look(5, 0.0) is ClockState.BEHIND
    assert wall.floor_ms == NOW
