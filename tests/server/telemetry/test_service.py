"""Readings are stored exactly once, filed at their own time, and acknowledged only as committed."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlmodel import select
from tests.fakes.server_parts import START, TestParts, add_device, make_parts, sent_messages

from covey_contract.codec import decode, encode
from covey_contract.ids import DeviceId
from covey_contract.messages import Ack, Priority, Reading, ReadingBatch
from covey_server.clock import to_millis
from covey_server.devices import service as devices
from covey_server.devices.models import Device
from covey_server.errors import InvalidInputError
from covey_server.mqtt.router import Router
from covey_server.telemetry import handlers, service
from covey_server.telemetry.models import ReadingRow, ReadingStream
from covey_server.triggers.models import Alert

CAM = DeviceId("cam-1")
AT = to_millis(START)
ACK = "covey/v1/d/cam-1/down/ack"


@pytest.fixture
def parts(tmp_path: Path) -> TestParts:
    parts = make_parts(tmp_path)
    with parts.db.begin() as session:
        add_device(session, "cam-1")
    return parts


def batch(first: int, count: int, *, epoch: str = "e1", **more: Any) -> ReadingBatch:
    return ReadingBatch(epoch, first, [Reading(AT + 1000 * (first + i), "infer", {"n": first + i}) for i in range(count)], **more)


def store(parts: TestParts, message: ReadingBatch, device: DeviceId = CAM) -> int:
    with parts.db.begin() as session:
        return service.store_readings(session, device, message, now=parts.clock()).stored


def rows(parts: TestParts) -> list[ReadingRow]:
    with parts.db.read() as session:
        return sorted(session.exec(select(ReadingRow)), key=lambda row: (row.device_id, row.epoch, row.sequence))


def stream(parts: TestParts, epoch: str = "e1") -> ReadingStream:
    with parts.db.read() as session:
        return session.get_one(ReadingStream, ("cam-1", epoch))


def acks(parts: TestParts) -> list[Ack]:
    return [decode(row.payload, Ack) for row in sent_messages(parts, ACK)]


def test_a_reading_comes_back_as_it_was_sent(parts: TestParts) -> None:
    values: dict[str, int | float | str] = {"p50_ms": 1.25, "requests": 3, "model": 'digits "v2" é', "big": 2**60}
    store(parts, ReadingBatch("e1", 5, [Reading(AT + 1, "infer", values, Priority.RESULT)]))
    (row,) = rows(parts)
    assert (row.device_id, row.epoch, row.sequence, row.kind, row.priority) == ("cam-1", "e1", 5, "infer", 0)
    assert row.values == values
    assert row.at == START + timedelta(milliseconds=1)
    assert row.received_at == START


@pytest.mark.parametrize("microsecond", [0, 1000, 999_000])
def test_times_written_past_the_orm_are_the_orms_own(parts: TestParts, microsecond: int) -> None:
    at = START.replace(microsecond=microsecond)
    store(parts, ReadingBatch("e1", 0, [Reading(to_millis(at), "infer", {})]))
    with parts.db.begin() as session:
        session.add(ReadingRow(device_id="cam-2", epoch="e1", sequence=0, at=at, received_at=START, kind="infer"))
    with parts.db.engine.connect() as connection:
        raw = connection.exec_driver_sql("SELECT DISTINCT at, received_at FROM readings").all()
    assert len(raw) == 1


def test_repetitions_are_stored_once_and_counted(parts: TestParts) -> None:
    assert store(parts, batch(0, 10)) == 10
    assert store(parts, batch(5, 10)) == 5
    assert store(parts, batch(0, 15)) == 0
    assert [row.sequence for row in rows(parts)] == list(range(15))
    assert (stream(parts).stored, stream(parts).duplicates, stream(parts).upto) == (15, 20, 14)


def test_the_same_numbers_of_another_device_or_epoch_are_other_readings(parts: TestParts) -> None:
    store(parts, batch(0, 3))
    store(parts, batch(0, 3, epoch="e2"))
    store(parts, batch(0, 3), DeviceId("cam-2"))
    assert len(rows(parts)) == 9


def test_numbers_with_gaps_are_kept(parts: TestParts) -> None:
    store(parts, batch(3, 3, sequences=[3, 7, 20]))
    assert [row.sequence for row in rows(parts)] == [3, 7, 20]
    assert acks(parts) == [Ack("e1", 20)]


def test_only_the_newest_acknowledgement_waits_and_speaks_of_its_own_batch(parts: TestParts) -> None:
    store(parts, batch(0, 10))
    store(parts, batch(10, 10))
    assert acks(parts) == [Ack("e1", 19)]
    store(parts, batch(0, 10))  # a state that was put back sends it again, and has sent nothing later: 19 would mean nothing to it
    assert acks(parts) == [Ack("e1", 9)]
    assert stream(parts).upto == 19


def test_a_batch_that_forks_is_stored_up_to_there_and_the_device_is_told(parts: TestParts) -> None:
    store(parts, batch(0, 10))
    readings = [Reading(AT + 1000 * n, "infer", {"n": n if n < 7 else 100 + n}) for n in range(4, 12)]
    assert store(parts, ReadingBatch("e1", 4, readings)) == 0
    assert acks(parts) == [Ack("e1", 6, forked=True)]
    assert len(rows(parts)) == 10
    assert store(parts, ReadingBatch("e2", 7, readings[3:])) == 5
    assert acks(parts) == [Ack("e2", 11)]


@pytest.mark.parametrize(
    "changed",
    [Reading(AT, "infer", {"n": 0.5}), Reading(AT, "system", {"n": 0}), Reading(AT + 1, "infer", {"n": 0})],
    ids=["values", "kind", "time"],
)
def test_anything_different_under_one_number_is_a_fork(parts: TestParts, changed: Reading) -> None:
    same = Reading(AT, "infer", {"n": 0})
    store(parts, ReadingBatch("e1", 5, [same]))
    store(parts, ReadingBatch("e1", 5, [same]))
    assert acks(parts) == [Ack("e1", 5)]
    store(parts, ReadingBatch("e1", 5, [changed]))
    assert acks(parts) == [Ack("e1", 4, forked=True)]


def test_what_was_lost_on_the_device_is_known(parts: TestParts) -> None:
    store(parts, batch(0, 1, lost={"sample": 5}))
    store(parts, batch(1, 1, lost={"sample": 9, "metric": 2}))
    store(parts, batch(0, 1, lost={"sample": 5}))  # repeated: an older count must not win
    store(parts, batch(2, 1, lost={"SAMPLE": 8, "nonsense": 1}))
    assert stream(parts).lost == {"sample": 9, "metric": 2}


@pytest.mark.parametrize(
    "message",
    [
        ReadingBatch("e1", 0, []),
        batch(0, 2, sequences=[0]),
        batch(0, 2, sequences=[0, 1, 2]),
        batch(0, 2, sequences=[1, 0]),
        batch(0, 2, sequences=[0, 0]),
        batch(0, 2, sequences=[1, 2]),
        ReadingBatch("e1", 2**53, [Reading(1, "infer", {}), Reading(1, "infer", {})]),
        ReadingBatch("e1", 2**63, [Reading(1, "infer", {})]),
    ],
    ids=["empty", "too few numbers", "too many numbers", "falling", "twice", "not from first", "beyond 2^53", "beyond 2^63"],
)
def test_a_batch_that_contradicts_itself_is_refused_whole(parts: TestParts, message: ReadingBatch) -> None:
    with pytest.raises(InvalidInputError):
        store(parts, message)
    assert rows(parts) == []
    assert acks(parts) == []


@pytest.mark.parametrize(
    ("millis", "filed"),
    [
        (AT - 90 * 86_400_000, START - timedelta(days=90)),
        (0, datetime(1970, 1, 1, tzinfo=UTC)),
        (AT + 3_600_000, START + timedelta(hours=1)),
        (AT + 3 * 86_400_000, START),
        (10**17, START),
        (2**63, START),
    ],
    ids=["late", "clock not set", "slightly ahead", "days ahead", "no date", "no time at all"],
)
def test_readings_are_filed_at_their_own_time_unless_it_cannot_be(parts: TestParts, millis: int, filed: datetime) -> None:
    store(parts, ReadingBatch("e1", 0, [Reading(millis, "infer", {})]))
    assert rows(parts)[0].at == filed


def test_what_is_not_a_number_does_not_spoil_the_table(parts: TestParts) -> None:
    store(parts, ReadingBatch("e1", 0, [Reading(AT, "infer", {"loss": float("nan"), "high": float("inf"), "ok": 1.0})]))
    assert rows(parts)[0].values == {"loss": None, "high": None, "ok": 1.0}


def test_old_readings_are_forgotten(parts: TestParts) -> None:
    store(parts, batch(0, 10))
    with parts.db.begin() as session:
        gone = service.prune_readings(session, now=START + timedelta(days=1, seconds=4), keep=timedelta(days=1))
    assert gone == 4
    assert [row.sequence for row in rows(parts)] == list(range(4, 10))


def test_an_alarm_becomes_one_alert(parts: TestParts) -> None:
    router = Router(parts)
    handlers.register(router)
    alarm = Reading(AT, "alarm", {"what": "disk_full", "detail": "3 % left"})
    for first in (0, 1, 1):
        assert router.route("covey/v1/d/cam-1/up/readings", encode(ReadingBatch("e1", first, [alarm])))
    with parts.db.read() as session:
        (alert,) = session.exec(select(Alert)).all()
    assert (alert.what, alert.detail, alert.device_id) == ("disk_full", "3 % left", "cam-1")


def test_a_device_that_sends_readings_was_seen(parts: TestParts) -> None:
    router = Router(parts)
    handlers.register(router)
    seen = []
    for seconds in (0, 2, 4):
        parts.clock.advance(seconds=seconds)
        router.route("covey/v1/d/cam-1/up/readings", encode(batch(seconds, 1)))
        with parts.db.read() as session:
            seen.append(session.get_one(Device, "cam-1").last_seen_at)
    assert seen == [START, START, START + timedelta(seconds=6)]


def test_readings_of_a_revoked_device_are_refused(parts: TestParts) -> None:
    router = Router(parts)
    handlers.register(router)
    with parts.db.begin() as session:
        devices.revoke_device(session, "cam-1", actor="user:test", now=START)
    assert not router.route("covey/v1/d/cam-1/up/readings", encode(batch(0, 1)))
    assert rows(parts) == []


def test_readings_of_a_stranger_are_refused(parts: TestParts) -> None:
    router = Router(parts)
    handlers.register(router)
    assert not router.route("covey/v1/d/cam-9/up/readings", encode(batch(0, 1)))
    assert rows(parts) == []
