"""Rules of the readings buffer."""

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from covey_agent.core.buffer import (
    PLAUSIBLE_SINCE,
    Entry,
    build_batch,
    count_overflow,
    cut_batch,
    encode_batch,
    entry_reading,
    fit_reading,
    make_entry,
    oldest_allowed,
)
from covey_contract.codec import decode
from covey_contract.limits import MAX_READINGS_PER_BATCH
from covey_contract.messages import Priority, Reading, ReadingBatch


def entry(sequence: int, *, size: int = 10, priority: Priority = Priority.METRIC) -> Entry:
    return make_entry(sequence, Reading(at=1, kind="system", values={"x": "y" * size}, priority=priority))


def test_reading_survives_the_buffer_unchanged() -> None:
    reading = Reading(at=7, kind="infer", values={"requests": 3, "p50_ms": 0.25, "model": "digits"}, priority=Priority.RESULT)
    assert entry_reading(make_entry(1, reading)) == reading


@pytest.mark.parametrize(
    ("limit", "dropped"),
    [
        (100, {}),
        (90, {Priority.SAMPLE: 10 + 2}),  # and room for a while: limit // 32
        (50, {Priority.SAMPLE: 40, Priority.METRIC: 10 + 1}),
        (15, {Priority.SAMPLE: 40, Priority.METRIC: 30, Priority.ALARM: 15}),
        (0, {Priority.SAMPLE: 40, Priority.METRIC: 30, Priority.ALARM: 20, Priority.RESULT: 10}),
    ],
)
def test_least_important_goes_first(limit: int, dropped: dict[Priority, int]) -> None:
    sizes = {Priority.RESULT: 10, Priority.ALARM: 20, Priority.METRIC: 30, Priority.SAMPLE: 40}
    assert count_overflow(sizes, limit=limit) == dropped


def test_consecutive_batch_names_only_its_first_sequence() -> None:
    batch = build_batch("e1", [entry(7), entry(8), entry(9)], {})
    assert (batch.first, batch.sequences) == (7, None)


def test_batch_with_gaps_names_every_sequence_and_what_was_lost() -> None:
    batch = build_batch("e1", [entry(7), entry(9)], {Priority.METRIC: 1, Priority.RESULT: 0})
    assert (batch.first, batch.sequences, batch.lost) == (7, [7, 9], {"metric": 1})


def test_batch_is_cut_at_the_contracts_number_of_readings() -> None:
    entries = [Entry(sequence=i, at=1, priority=Priority.METRIC, data=b"x") for i in range(MAX_READINGS_PER_BATCH + 5)]
    assert len(cut_batch(entries)) == MAX_READINGS_PER_BATCH


def test_batch_that_does_not_compress_is_halved_until_it_fits() -> None:
    words = [hashlib.sha256(str(i).encode()).hexdigest() for i in range(7500)]
    noise = [make_entry(i, Reading(at=1, kind="alarm", values={"w": "".join(words[i * 5 : i * 5 + 5])})) for i in range(1500)]
    payload, count = encode_batch("e1", noise, {})
    assert 0 < count < 1500
    assert [reading.values for reading in decode(payload, ReadingBatch).readings] == [entry_reading(one).values for one in noise[:count]]


def test_old_readings_go_but_not_those_of_an_unset_clock() -> None:
    now = PLAUSIBLE_SINCE + 1_000_000
    assert oldest_allowed(now, max_age_ms=1000) == (PLAUSIBLE_SINCE, now - 1000)
    since, before = oldest_allowed(12_345, max_age_ms=1000)
    assert since >= before


def test_reading_is_made_to_fit_the_contract() -> None:
    values: dict[str, int | float | str] = {f"v{i}": i for i in range(100)}
    fitted = fit_reading(Reading(at=1, kind="infer", values={"bad": float("nan"), "long": "x" * 2000, **values}))
    assert "bad" not in fitted.values
    assert len(fitted.values) <= 64
    assert fitted.values["long"] == "x" * 500
    decode(encode_batch("e1", [make_entry(1, fitted)], {})[0], ReadingBatch)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(min_value=1, max_value=100_000), min_size=1, max_size=60, unique=True))
def test_batch_always_says_which_reading_is_which(numbers: list[int]) -> None:
    sequences = sorted(numbers)
    batch = build_batch("e1", [entry(number) for number in sequences], {})
    said = batch.sequences or list(range(batch.first, batch.first + len(batch.readings)))
    assert said == sequences
