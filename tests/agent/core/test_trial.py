"""When a version on trial is proven, when it has failed, and which ends say nothing."""

import pytest

from covey_agent.trial import CONNECTED, READY, End, Limits, Signs, judge_end
from covey_agent.versions import EXIT_RESTART, Versions, begin_trial, count_start, fall_back, prove

LIMITS = Limits(start_s=90, connect_s=600, settle_s=60, silence_s=60)


def signs(*, needs_connection: bool, heard: list[tuple[float, bytes]]) -> Signs:
    made = Signs(LIMITS, needs_connection=needs_connection, started=1000.0)
    for at, line in heard:
        made.hear([line], at)
    return made


@pytest.mark.parametrize(
    ("needs_connection", "heard", "now", "proven", "fault"),
    [
        (True, [], 1090.0, False, ""),
        (True, [], 1091.0, False, "not ready within 90 s"),
        (False, [(1001.0, READY)], 1060.0, False, ""),
        (False, [(1001.0, READY)], 1061.0, True, ""),
        (False, [(1001.0, READY)], 1061.5, True, "no sign of life for 60 s"),
        (True, [(1001.0, READY), (1061.0, b"WATCHDOG=1")], 1062.0, False, ""),
        (True, [(1001.0, READY), (1050.0, CONNECTED)], 1109.0, False, ""),
        (True, [(1001.0, READY), (1050.0, CONNECTED)], 1110.0, True, ""),
        (True, [(1001.0, CONNECTED)], 1061.0, False, ""),
        (True, [(1001.0, READY), (1600.0, b"WATCHDOG=1")], 1602.0, False, "did not connect within 600 s"),
        (False, [(1001.0, READY), (1600.0, b"WATCHDOG=1")], 1602.0, True, ""),
    ],
)
def test_signs_of_life_are_judged(needs_connection: bool, heard: list[tuple[float, bytes]], now: float, proven: bool, fault: str) -> None:
    found = signs(needs_connection=needs_connection, heard=heard)
    assert found.is_proven(now) is proven
    said = found.find_fault(now, proven=False)
    assert fault in said
    assert bool(said) is bool(fault)


def test_a_proven_version_may_lose_its_connection_and_may_not_hang() -> None:
    found = signs(needs_connection=True, heard=[(1001.0, READY), (5000.0, b"WATCHDOG=1")])
    assert found.find_fault(5001.0, proven=True) == ""
    assert "no sign of life" in found.find_fault(5061.0, proven=True)


@pytest.mark.parametrize(
    ("code", "asked", "proven", "expected"),
    [
        (1, False, False, End(1, "it ended with exit code 1")),
        (0, False, False, End(0, "it ended with exit code 0")),
        (-9, False, False, End(137, "it was killed by signal 9")),
        (2, False, False, End(2, "it ended with exit code 2", at_once=True)),
        (6, False, False, End(6, counts=False)),
        (8, False, False, End(8, counts=False)),
        (EXIT_RESTART, False, False, End(EXIT_RESTART, counts=False)),
        (0, True, False, End(0, counts=False)),
        (-9, True, False, End(137, counts=False)),
        (1, False, True, End(1)),
    ],
)
def test_ends_are_judged(code: int, asked: bool, proven: bool, expected: End) -> None:
    assert judge_end(code, why_killed="", proven=proven, asked_to_stop=asked, restart_code=EXIT_RESTART) == expected


def test_a_reason_for_killing_goes_before_the_signal() -> None:
    assert judge_end(-9, why_killed="it hangs", proven=False, asked_to_stop=False, restart_code=EXIT_RESTART).fault == "it hangs"


def test_the_environment_changes_limits() -> None:
    assert Limits.read({}) == Limits()
    assert Limits.read({"COVEY_LAUNCH_START_S": "5", "COVEY_LAUNCH_MAX_STARTS": "2"}) == Limits(start_s=5.0, max_starts=2)


def test_a_trial_ends_with_the_new_version_or_the_old() -> None:
    tried = count_start(begin_trial(Versions(current="1", failed={"2": "old news"}), "2", was_connected=True))
    assert (tried.current, tried.previous, tried.failed) == ("2", "1", {})
    assert tried.trial is not None
    assert (tried.trial.starts, tried.trial.was_connected) == (1, True)
    assert (prove(tried).current, prove(tried).previous, prove(tried).trial) == ("2", "1", None)
    back = fall_back(tried, "it hangs", at=5)
    assert (back.current, back.trial, back.failed) == ("1", None, {"2": "it hangs"})
    assert fall_back(back, "again", at=6) == back, "without a trial there is nothing to fall back from"
    assert count_start(back) == back
