"""How long a device waits before it asks again, against hand-computed values of RFC 6298."""

import random

import pytest

from covey_agent.workers.patience import Patience, PatienceSettings

SETTINGS = PatienceSettings(first_wait_s=2.0, least_wait_s=0.5, most_wait_s=30.0, patience_s=100.0, jitter=0.0)


def patience(settings: PatienceSettings = SETTINGS) -> Patience:
    return Patience(settings, now=0.0, chance=random.Random(7))


def test_the_wait_follows_the_measured_round_trip() -> None:
    subject = patience()
    subject.asked(now=0.0)
    subject.answered(now=1.0)  # srtt = 1, rttvar = 0.5
    assert subject.asked(now=1.0) == pytest.approx(1 + 4 * 0.5)
    subject.answered(now=3.0)  # rttvar = 0.75 * 0.5 + 0.25 * |1 - 2| = 0.625; srtt = 0.875 * 1 + 0.125 * 2 = 1.125
    assert subject.asked(now=3.0) == pytest.approx(1.125 + 4 * 0.625)


def test_each_asking_in_vain_doubles_the_wait_up_to_the_cap() -> None:
    subject = patience()
    assert [subject.asked(now=0.0) for _ in range(6)] == [2, 4, 8, 16, 30, 30]


def test_an_answer_ends_the_doubling() -> None:
    subject = patience()
    for _ in range(4):
        subject.asked(now=0.0)
    subject.answered(now=1.0)
    assert subject.asked(now=1.0) == 2.0


def test_an_answer_to_a_repeated_question_is_not_measured() -> None:
    subject = patience()
    subject.asked(now=0.0)
    subject.asked(now=10.0)
    subject.answered(now=10.001)  # most likely the answer to the first asking
    assert subject.asked(now=11.0) == 2.0


def test_the_gaps_between_many_answers_are_measured() -> None:
    """A slow link: the first chunk comes after 5 s, the next every 4 s. Asking again within that would double the traffic."""
    subject = patience()
    subject.asked(now=0.0)
    now, wait = 5.0, 0.0
    for _ in range(10):
        wait = subject.answered(now=now)
        assert wait > 4.0
        now += 4.0


def test_a_fast_link_never_waits_less_than_the_floor() -> None:
    subject = patience()
    for now in range(50):
        subject.asked(now=float(now))
        subject.answered(now=now + 0.001)
    assert subject.asked(now=50.0) == 0.5


def test_jitter_only_lengthens_and_differs() -> None:
    subject = patience(PatienceSettings(first_wait_s=2.0, jitter=0.25))
    waits = {subject.asked(now=0.0) / 2**index for index in range(4)}
    assert len(waits) == 4
    assert all(2.0 <= wait <= 2.5 for wait in waits)


def test_it_is_over_without_progress_and_not_with_it() -> None:
    subject = patience()
    assert not subject.is_over(now=100.0)
    assert subject.is_over(now=100.1)
    subject.asked(now=90.0)
    subject.answered(now=95.0)
    assert not subject.is_over(now=195.0)
    assert subject.is_over(now=195.1)
