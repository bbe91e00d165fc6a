"""Coalescing of wants and the token bucket: pure rules with a clock made of numbers."""

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from covey_contract.limits import CHUNK_BYTES, GROUP_CHUNKS
from covey_server.releases.coalesce import Coalescer, Group, TokenBucket, group_bits

GROUP = Group("a" * 64, 0)
OTHER = Group("b" * 64, 0)


def drain(coalescer: Coalescer, now: float) -> list[tuple[Group, int]]:
    sent = []
    while (taken := coalescer.take(now)) is not None:
        sent.append(taken)
    return sent


def test_a_want_waits_for_the_window_and_is_then_sent_in_order() -> None:
    coalescer = Coalescer(window_s=0.05)
    assert coalescer.add(GROUP, 0b1101, asked_at=10.0) == 0
    assert coalescer.next_due() == 10.05
    assert drain(coalescer, 10.04) == []
    assert drain(coalescer, 10.05) == [(GROUP, 0), (GROUP, 2), (GROUP, 3)]
    assert coalescer.next_due() is None


def test_wants_of_many_devices_become_one_send_of_their_union() -> None:
    coalescer = Coalescer(window_s=0.05)
    saved = [
        coalescer.add(GROUP, 0b11, asked_at=0.0),
        coalescer.add(GROUP, 0b110, asked_at=0.01),
        coalescer.add(GROUP, 0b111, asked_at=0.02),
    ]
    assert saved == [0, 1, 3]
    assert drain(coalescer, 0.1) == [(GROUP, 0), (GROUP, 1), (GROUP, 2)]


def test_a_want_received_before_the_send_but_read_after_it_is_served_by_it() -> None:
    coalescer = Coalescer(window_s=0.0)
    coalescer.add(GROUP, 0b1, asked_at=1.0)
    assert drain(coalescer, 1.2) == [(GROUP, 0)]
    assert coalescer.add(GROUP, 0b1, asked_at=1.1) == 1
    assert drain(coalescer, 2.0) == []


def test_a_want_received_after_the_send_is_sent_again() -> None:
    coalescer = Coalescer(window_s=0.0)
    coalescer.add(GROUP, 0b1, asked_at=1.0)
    assert drain(coalescer, 1.2) == [(GROUP, 0)]
    assert coalescer.add(GROUP, 0b1, asked_at=1.3) == 0
    assert drain(coalescer, 1.4) == [(GROUP, 0)]


def test_a_want_joins_what_is_still_to_be_sent_of_a_group() -> None:
    coalescer = Coalescer(window_s=0.0)
    coalescer.add(GROUP, 0b11, asked_at=1.0)
    assert coalescer.take(1.1) == (GROUP, 0)
    assert coalescer.add(GROUP, 0b11, asked_at=1.2) == 1
    assert drain(coalescer, 1.3) == [(GROUP, 0), (GROUP, 1)]


def test_groups_are_served_in_the_order_in_which_they_were_asked_for() -> None:
    coalescer = Coalescer(window_s=0.0)
    coalescer.add(OTHER, 1, asked_at=0.0)
    coalescer.add(GROUP, 1, asked_at=0.1)
    assert drain(coalescer, 1.0) == [(OTHER, 0), (GROUP, 0)]


def test_a_flood_of_different_groups_is_refused_not_remembered() -> None:
    coalescer = Coalescer(window_s=0.0, max_groups=2)
    assert [coalescer.add(Group("a" * 64, number), 1, asked_at=0.0) for number in range(3)] == [0, 0, -1]


def test_a_withdrawn_artifact_is_dropped() -> None:
    coalescer = Coalescer(window_s=0.0)
    coalescer.add(GROUP, 1, asked_at=0.0)
    coalescer.add(OTHER, 1, asked_at=0.0)
    coalescer.drop(GROUP.digest)
    assert drain(coalescer, 1.0) == [(OTHER, 0)]


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, (1 << GROUP_CHUNKS) - 1), st.floats(0, 0.5), st.booleans()), max_size=20))
def test_every_want_is_answered_by_a_send_at_or_after_it_was_asked(wants: list[tuple[int, int, float, bool]]) -> None:
    coalescer = Coalescer(window_s=0.05, remember_s=1000.0)
    now, sent, asked = 0.0, [], []
    for number, missing, pause, take in wants:
        now += pause
        group = Group("a" * 64, number)
        coalescer.add(group, missing, asked_at=now)
        asked += [(group, chunk, now) for chunk in range(GROUP_CHUNKS) if missing >> chunk & 1]
        if take:
            sent += [(*key, now) for key in drain(coalescer, now)]
    sent += [(*key, now + 1) for key in drain(coalescer, now + 1)]
    for group, chunk, at in asked:
        assert any((number, place) == (group, chunk) and when >= at for number, place, when in sent)
    assert len(sent) <= len(asked)


@pytest.mark.parametrize(
    ("length", "group", "expected"),
    [
        (1, 0, 0b1),
        (CHUNK_BYTES, 0, 0b1),
        (CHUNK_BYTES + 1, 0, 0b11),
        (CHUNK_BYTES * GROUP_CHUNKS, 0, 0xFFFF),
        (CHUNK_BYTES * GROUP_CHUNKS, 1, 0),
        (CHUNK_BYTES * GROUP_CHUNKS + 1, 1, 0b1),
        (1, 10**9, 0),
    ],
)
def test_which_chunks_a_group_has(length: int, group: int, expected: int) -> None:
    assert group_bits(length, group) == expected


def test_the_bucket_lets_a_burst_through_and_then_the_rate() -> None:
    bucket = TokenBucket(rate=10.0, burst=20.0)
    assert [bucket.wait_s(10, 0.0), bucket.wait_s(10, 0.0)] == [0.0, 0.0]
    assert bucket.wait_s(10, 0.0) == pytest.approx(1.0)
    assert bucket.wait_s(10, 0.5) == pytest.approx(0.5)
    assert bucket.wait_s(10, 1.0) == 0.0


def test_a_cost_above_the_burst_passes_and_is_paid_for_afterwards() -> None:
    bucket = TokenBucket(rate=10.0, burst=5.0)
    assert bucket.wait_s(20, 0.0) == 0.0
    assert bucket.wait_s(5, 0.0) == pytest.approx(2.0)


def test_a_device_that_asks_for_everything_at_once_holds_up_nobody_else() -> None:
    coalescer = Coalescer(window_s=0.0, max_groups_each=4)
    greedy = [coalescer.add(Group("a", number), 0xFFFF, asked_at=1.0, asker="greedy") for number in range(20)]
    assert greedy == [0] * 4 + [-1] * 16
    assert coalescer.add(Group("b", 0), 1, asked_at=1.0, asker="modest") == 0
    sent = [coalescer.take(2.0) for _ in range(4 * 16 + 1)]
    assert sent[-1] == (Group("b", 0), 0)
    assert coalescer.add(Group("a", 5), 1, asked_at=3.0, asker="greedy") == 0, "its place is free again"


def test_what_is_dropped_or_cleared_frees_its_askers_place() -> None:
    coalescer = Coalescer(window_s=0.0, max_groups_each=1)
    forgets: list[Callable[[], None]] = [lambda: coalescer.drop("a"), coalescer.clear]
    for forget in forgets:
        assert coalescer.add(Group("a", 0), 1, asked_at=1.0, asker="x") == 0
        assert coalescer.add(Group("a", 1), 1, asked_at=1.0, asker="x") == -1
        forget()
