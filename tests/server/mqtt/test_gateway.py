"""The gateway acknowledges what is committed and nothing else, and survives faults of the database and of handlers."""

import sqlite3
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from sqlalchemy.exc import OperationalError
from sqlmodel import Session
from tests.fakes.server_parts import TestParts, live_events, make_parts

from covey_contract.codec import encode
from covey_contract.ids import DeviceId
from covey_contract.messages import Presence, Status
from covey_contract.topics import Channel
from covey_server import outbox
from covey_server.mqtt.gateway import Gateway
from covey_server.mqtt.link import Incoming
from covey_server.mqtt.router import Router
from covey_server.parts import Parts


@dataclass
class Acks:
    """Remembers what was acknowledged, and how many rows had been committed by then."""

    parts: TestParts
    mids: list[int] = field(default_factory=list)
    rows_then: list[int] = field(default_factory=list)

    def acknowledge(self, message: Incoming) -> None:
        """Take one acknowledgement."""
        self.mids.append(message.mid)
        self.rows_then.append(len(live_events(self.parts)))


@pytest.fixture
def parts(tmp_path: Path) -> TestParts:
    return make_parts(tmp_path)


def note(_parts: Parts, session: Session, device: DeviceId, _message: object) -> None:
    outbox.emit(session, "seen", {"device": device})


def message(mid: int, device: str = "cam-1", payload: bytes | None = None) -> Incoming:
    payload = encode(Status(Presence.ONLINE, "b1", mid)) if payload is None else payload
    return Incoming(f"covey/v1/d/{device}/status", payload, mid=mid, qos=1, connection=1)


def gateway_for(parts: TestParts, handler: object = note, *, length: int = 100) -> tuple[Gateway, Router, Acks]:
    router = Router(parts)
    assert callable(handler)
    router.register(Channel.STATUS, handler)
    return Gateway(router, length=length, sleep=lambda _seconds: None), router, Acks(parts)


def test_messages_that_wait_share_a_transaction_and_are_acknowledged_after_it(parts: TestParts) -> None:
    gateway, _, acks = gateway_for(parts)
    for mid in range(1, 6):
        gateway.take(message(mid))
    assert gateway.pump(acks, timeout_s=0) == 5
    assert acks.mids == [1, 2, 3, 4, 5]
    assert acks.rows_then == [5] * 5


def test_a_refused_message_is_acknowledged_or_it_would_come_for_ever(parts: TestParts) -> None:
    gateway, router, acks = gateway_for(parts)
    gateway.take(message(1, payload=b"broken"))
    gateway.pump(acks, timeout_s=0)
    assert acks.mids == [1]
    assert router.refused == {"malformed": 1}


def test_nothing_is_acknowledged_while_the_database_is_locked(parts: TestParts) -> None:
    """A real lock, held by another connection until the gateway has tried twice."""
    other = sqlite3.connect(parts.settings.path("fleet.db"), isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    tries: list[float] = []
    acks = Acks(parts)

    def wait(seconds: float) -> None:
        tries.append(seconds)
        assert acks.mids == []
        if len(tries) == 2:
            other.execute("COMMIT")

    with parts.db.engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA busy_timeout=1")  # of the one pooled connection, which the gateway gets next
    router = Router(parts)
    router.register(Channel.STATUS, note)
    gateway = Gateway(router, sleep=wait)
    gateway.take(message(1))
    gateway.pump(acks, timeout_s=0)
    other.close()
    assert len(tries) == 2
    assert acks.mids == [1]
    assert len(live_events(parts)) == 1


def test_a_message_that_makes_a_handler_fail_is_the_only_one_lost(parts: TestParts) -> None:
    def fails_for_bad(parts: Parts, session: Session, device: DeviceId, message: object) -> None:
        note(parts, session, device, message)
        if device == "bad":
            raise ZeroDivisionError

    gateway, router, acks = gateway_for(parts, fails_for_bad)
    for mid, device in enumerate(["cam-1", "bad", "cam-2"], start=1):
        gateway.take(message(mid, device))
    gateway.pump(acks, timeout_s=0)
    assert acks.mids == [1, 2, 3]
    assert [event.data["device"] for event in live_events(parts)] == ["cam-1", "cam-2"]
    assert router.refused == {"handler_failed": 1}


def test_a_gateway_that_stops_leaves_unhandled_messages_unacknowledged(parts: TestParts) -> None:
    def always_away(_parts: Parts, _session: Session, _device: DeviceId, _message: object) -> None:
        gateway.stop()
        raise OperationalError("INSERT", {}, sqlite3.OperationalError("disk I/O error"))

    gateway, _, acks = gateway_for(parts, always_away)
    gateway.take(message(1))
    gateway.pump(acks, timeout_s=0)
    assert acks.mids == []


def test_a_full_queue_refuses_and_counts_without_acknowledging(parts: TestParts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("covey_server.mqtt.gateway._HAND_OVER_S", 0.001)
    gateway, router, acks = gateway_for(parts, length=2)
    for mid in (1, 2, 3):
        gateway.take(message(mid))
    assert gateway.overflowed == 1
    gateway.pump(acks, timeout_s=0)
    assert acks.mids == [1, 2]
    assert router.refused == {"overflow": 1}
