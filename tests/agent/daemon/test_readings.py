"""Readings through the whole daemon: delivered at least once, named once, kept through outages and restarts, bounded."""

from pathlib import Path

import pytest
from tests.fakes.agent.outside import Life, World

from covey_agent.core.jobs import InferWindow
from covey_agent.daemon.meter import Tally, add_window, tally_values
from covey_agent.settings import ReadingsSettings, Settings
from covey_contract.codec import encode
from covey_contract.messages import Ack, Priority, ReadingBatch

FAST = Settings(readings=ReadingsSettings(system_interval_s=0, send_interval_s=0.1, flush_interval_s=60, ack_timeout_s=5))


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path, settings=FAST)


def add(life: Life, *numbers: int, priority: Priority = Priority.METRIC) -> None:
    for number in numbers:
        life.agent._hub.readings.add("test", {"number": number}, priority=priority)
    life.advance(0.2, step_s=0.2)


def ack(life: Life, batch: ReadingBatch) -> None:
    life.receive("down/ack", encode(Ack(epoch=batch.epoch, upto=max(sequences(batch)))))


def sequences(batch: ReadingBatch) -> list[int]:
    return batch.sequences or list(range(batch.first, batch.first + len(batch.readings)))


def numbers(batch: ReadingBatch) -> list[object]:
    return [reading.values["number"] for reading in batch.readings]


def on_disk(life: Life) -> int:
    rows = life.database.query("SELECT COUNT(*) FROM reading")
    return int(str(rows[0][0]))


def test_readings_are_sent_in_batches_and_forgotten_when_acknowledged(world: World) -> None:
    life = world.boot()
    life.connect()
    add(life, 1, 2, 3)
    (batch,) = life.batches()
    assert numbers(batch) == [1, 2, 3]
    add(life, 4)
    assert life.batches() == [], "one batch is under way at a time"
    ack(life, batch)
    (batch,) = life.batches()
    assert numbers(batch) == [4]
    ack(life, batch)
    assert life.agent._hub.readings.waiting_bytes() == 0


def test_prompt_acknowledgement_spares_the_disk(world: World) -> None:
    life = world.boot()
    life.connect()
    add(life, 1, 2, 3)
    ack(life, life.batches()[0])
    life.advance(70)
    rows = life.database.query("SELECT COUNT(*) FROM reading")
    assert rows == [(0,)]


def test_unacknowledged_batch_is_sent_again_unchanged(world: World) -> None:
    life = world.boot()
    life.connect()
    add(life, 1, 2)
    (first,) = life.batches()
    life.advance(6)
    (second,) = life.batches()
    assert second == first


def test_reconnecting_sends_again_what_was_under_way(world: World) -> None:
    life = world.boot()
    life.connect()
    add(life, 1)
    (first,) = life.batches()
    life.disconnect()
    add(life, 2)
    life.connect()
    (second,) = life.batches()
    assert (second.first, numbers(second)) == (first.first, [1, 2])


def test_outage_is_stored_and_forwarded_in_order(world: World) -> None:
    life = world.boot()
    for start in range(0, 50, 10):
        add(life, *range(start, start + 10))
        life.advance(61)
    assert on_disk(life) == 50
    life.connect()
    (batch,) = life.batches()
    assert numbers(batch) == list(range(50))
    ack(life, batch)
    assert on_disk(life) == 0


def test_restart_never_uses_a_sequence_number_twice(world: World) -> None:
    life = world.boot()
    life.connect()
    add(life, 1, 2)
    (first,) = life.batches()
    life.database.close()  # kill -9: the server may or may not have stored these
    life = world.boot()
    life.connect()
    add(life, 3)
    (second,) = life.batches()
    assert second.epoch == first.epoch
    assert not set(sequences(first)) & set(sequences(second))


def test_results_and_alarms_are_on_disk_at_once(world: World) -> None:
    life = world.boot()
    add(life, 1)
    assert on_disk(life) == 0
    add(life, 2, priority=Priority.RESULT)
    assert on_disk(life) == 2
    life.database.close()
    life = world.boot()
    life.connect()
    assert numbers(life.batches()[0]) == [1, 2]


def test_clean_stop_keeps_everything(world: World) -> None:
    life = world.boot()
    add(life, 1, 2, 3)
    life.agent._hub.readings.close()
    assert on_disk(life) == 3


def test_full_buffer_drops_the_least_important_and_says_so(tmp_path: Path) -> None:
    settings = Settings(readings=ReadingsSettings(system_interval_s=0, send_interval_s=0.1, flush_interval_s=1, max_mb=0.01))
    life = World(tmp_path, settings=settings).boot()
    add(life, 1, 2, 3, priority=Priority.RESULT)
    for start in range(0, 2000, 100):
        add(life, *range(start, start + 100))
        life.advance(1.1)
    life.connect()
    received: list[object] = []
    lost = 0
    while batches := life.batches():
        received += numbers(batches[0])
        lost = batches[0].lost.get("metric", 0)
        ack(life, batches[0])
    assert received[:3] == [1, 2, 3]
    assert received[-1] == 1999
    assert len(received) + lost == 2003


@pytest.mark.parametrize("change", ["epoch", "upto"])
def test_acknowledgement_of_what_was_never_sent_deletes_nothing(world: World, change: str) -> None:
    life = world.boot()
    life.connect()
    add(life, 1)
    (batch,) = life.batches()
    life.receive("down/ack", encode(Ack(epoch="another" if change == "epoch" else batch.epoch, upto=10**9)))
    life.receive("down/ack", b"\xff not an ack")
    life.advance(6)
    assert life.batches() == [batch]


def test_windows_become_one_reading_an_interval_and_empty_ones_none(world: World) -> None:
    life = world.boot()
    life.connect()
    hub = life.agent._hub
    world.fill_slot("A", 3)
    for requests in (4, 0, 6):
        window = InferWindow(requests=requests, inputs=requests, errors=0, p50_ms=2.0, p95_ms=requests, classes={"7": requests})
        hub.worker_window("A", window)
    life.advance(6)
    (batch,) = life.batches()
    (reading,) = batch.readings
    assert reading.kind == "infer"
    assert reading.values == {
        "model": "digits",
        "version": 3,
        "requests": 10,
        "inputs": 10,
        "errors": 0,
        "rejected": 0,
        "p50_ms": 2.0,
        "p95_ms": 6.0,
        "mean_confidence": 0.0,
        "class_7": 10,
    }
    hub.worker_window("A", InferWindow(requests=0, inputs=0, errors=0))
    life.advance(20)
    assert set(map(str, life.batches())) == {str(batch)}, "only the unacknowledged one again"


def test_tally_of_many_classes_still_fits_one_reading() -> None:
    window = InferWindow(requests=100, inputs=100, errors=1, nonfinite=1, labelled=2, classes={str(i): i + 1 for i in range(200)})
    values = tally_values(add_window(Tally(), window))
    assert len(values) <= 64
    assert values["class_199"] == 200
    assert sum(int(count) for key, count in values.items() if key.startswith("class_")) == sum(range(1, 201))


def test_health_of_the_machine_becomes_readings(tmp_path: Path) -> None:
    settings = Settings(readings=ReadingsSettings(system_interval_s=30))
    life = World(tmp_path, settings=settings).boot()
    life.connect()
    life.advance(33)
    (batch,) = life.batches()
    assert batch.readings[0].kind == "system"
    assert "disk_free_bytes" in batch.readings[0].values
