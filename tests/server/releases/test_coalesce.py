"""Coalescing of wants and the token bucket: pure rules with a clock made of numbers."""

import random
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


def simulate_wave(coalescer: Coalescer, *, devices: int, groups: int, drift_s: float) -> int:
    """Devices that ask for one group after the other, each at a speed of its own; returns how many chunks were sent."""
    chance = random.Random(3)
    pause_s = [0.05 + drift_s * chance.random() for _ in range(devices)]  # from a group's last chunk to the next want
    asks = sorted((chance.random() * drift_s, device) for device in range(devices))
    place, lacking = [0] * devices, [0] * devices  # 0: not listening
    sent, now = 0, 0.0
    while asks or coalescer.next_due() is not None:
        due = coalescer.next_due()
        now = max(now, min([at for at, _ in asks[:1]] + ([] if due is None else [due])))
        if asks and asks[0][0] <= now:
            asked_at, device = asks.pop(0)
            lacking[device] = 0xFFFF
            coalescer.add(Group("d", place[device]), 0xFFFF, asked_at=asked_at, asker=str(device))
            continue
        taken = coalescer.take(now)
        assert taken is not None
        sent, now = sent + 1, now + 0.0005
        for device in range(devices):
            if lacking[device] >> taken[1] & 1 and place[device] == taken[0].number:
                lacking[device] &= ~(1 << taken[1])
                if not lacking[device]:
                    place[device] += 1
                    if place[device] < groups:
                        asks = sorted([*asks, (now + pause_s[device], device)])
    assert all(number == groups for number in place)
    return sent


def test_a_wave_that_drifts_apart_is_waited_for() -> None:
    once = 10 * 16
    fixed = simulate_wave(Coalescer(window_s=0.05, most_window_s=0.05), devices=50, groups=10, drift_s=0.4)
    adaptive = simulate_wave(Coalescer(window_s=0.05), devices=50, groups=10, drift_s=0.4)
    assert fixed > 2 * once, "the simulation shows the trouble"
    assert adaptive < min(fixed / 6, 2.5 * once)


def test_a_single_device_is_not_kept_waiting() -> None:
    coalescer = Coalescer(window_s=0.05)
    for number in range(20):
        coalescer.add(Group("d", number), 1, asked_at=float(number))
        assert coalescer.next_due() == pytest.approx(number + 0.05)
        assert coalescer.take(number + 0.05) is not None


def test_who_asks_again_before_what_was_sent_can_have_arrived_gets_nothing_twice() -> None:
    coalescer = Coalescer(window_s=0.0)
    coalescer.add(Group("d", 0), 0b11, asked_at=1.0, asker="slow")
    assert [coalescer.take(1.1), coalescer.take(1.1)] == [(Group("d", 0), 0), (Group("d", 0), 1)]
    assert coalescer.add(Group("d", 0), 0b10, asked_at=2.0, asker="slow") == 1
    assert coalescer.next_due() is None
    assert coalescer.add(Group("d", 0), 0b10, asked_at=2.0, asker="late") == 0, "another device was not listening then"
    assert coalescer.take(2.0) == (Group("d", 0), 1)
    assert coalescer.add(Group("d", 0), 0b01, asked_at=4.2, asker="slow") == 0, "by now it is lost"
    assert coalescer.take(4.2) == (Group("d", 0), 0)
