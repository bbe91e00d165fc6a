"""Gateway, outbox and link on the real broker, through restarts."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from sqlmodel import col, select
from tests.fakes.nats_broker import Peer, RunningBroker, running_broker, wait_until
from tests.fakes.server_parts import TestParts, add_device, make_parts, sent_messages
from tests.fakes.services import require

from covey_contract.codec import decode, encode
from covey_contract.errors import PayloadTooLargeError
from covey_contract.limits import MAX_PAYLOAD_BYTES
from covey_contract.messages import Ack, Reading, ReadingBatch
from covey_server import outbox
from covey_server.broker.binary import PACKAGE, find_binary
from covey_server.errors import UnavailableError
from covey_server.mqtt.gateway import Gateway
from covey_server.mqtt.link import BrokerLink, Incoming
from covey_server.mqtt.publisher import OutboxPublisher
from covey_server.mqtt.router import Router
from covey_server.settings import BrokerSettings
from covey_server.telemetry import handlers
from covey_server.telemetry.models import ReadingRow, ReadingStream

pytestmark = pytest.mark.broker
READINGS = "covey/v1/d/cam-1/up/readings"
ACK = "covey/v1/d/cam-1/down/ack"


@dataclass
class Server:
    """The worker's MQTT side."""

    parts: TestParts
    link: BrokerLink
    gateway: Gateway
    router: Router
    outbox: OutboxPublisher


@pytest.fixture
def broker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunningBroker]:
    monkeypatch.setattr("covey_server.broker.embedded.ACK_WAIT_S", 1)
    try:
        find_binary(BrokerSettings())
    except UnavailableError:
        require(False, PACKAGE)
    with running_broker(tmp_path / "broker", devices=["cam-1"]) as running:
        yield running


@pytest.fixture
def parts(tmp_path: Path) -> Iterator[TestParts]:
    parts = make_parts(tmp_path / "server")
    with parts.db.begin() as session:
        add_device(session, "cam-1")
    yield parts
    parts.db.close()


@contextmanager
def running_server(parts: TestParts, broker: RunningBroker) -> Iterator[Server]:
    router = Router(parts)
    handlers.register(router)
    gateway = Gateway(router)
    link = BrokerLink(host="127.0.0.1", port=broker.port, keys=broker.gateway_files(), on_message=gateway.take)
    publisher = OutboxPublisher(parts.db, link)
    link.start()
    gateway.start(link)
    publisher.start()
    try:
        assert link.wait_connected(20)
        yield Server(parts, link, gateway, router, publisher)
    finally:
        publisher.stop()
        gateway.stop()
        link.stop()


def batch(first: int, count: int = 10) -> bytes:
    return encode(ReadingBatch("e1", first, [Reading(1_768_000_000_000 + i, "infer", {"p50_ms": 1.5}) for i in range(count)]))


def stored(parts: TestParts) -> list[int]:
    with parts.db.read() as session:
        return list(session.exec(select(ReadingRow.sequence).order_by(col(ReadingRow.sequence))))


def test_readings_come_in_and_acknowledgements_go_out(parts: TestParts, broker: RunningBroker) -> None:
    device = broker.connect("cam-1")
    assert device.subscribe(ACK)
    with running_server(parts, broker):
        device.publish(READINGS, batch(0))
        device.publish(READINGS, batch(10))
        wait_until(lambda: [decode(p, Ack).upto for p in device.payloads(ACK)][-1:] == [19], what="the acknowledgement")
    assert stored(parts) == list(range(20))


def test_a_device_cannot_take_the_servers_place_at_the_broker(parts: TestParts, broker: RunningBroker) -> None:
    with running_server(parts, broker) as server:
        before = server.link.connections
        for guess in ("covey-server", "covey-server:bulk"):
            broker.connect("cam-1", client_id=guess).close()
        broker.connect("cam-1").publish(READINGS, batch(0))
        wait_until(lambda: len(stored(parts)) == 10, what="the readings")
        assert server.link.connections == before


def test_what_came_while_the_server_was_down_is_handled_after_its_start(parts: TestParts, broker: RunningBroker) -> None:
    with running_server(parts, broker):
        pass  # once, so that the broker knows the session
    device = broker.connect("cam-1")
    device.publish(READINGS, batch(0))
    with running_server(parts, broker):
        wait_until(lambda: len(stored(parts)) == 10, what="the readings that waited at the broker")


def test_a_server_killed_between_receiving_and_committing_loses_nothing(parts: TestParts, broker: RunningBroker) -> None:
    received: list[Incoming] = []
    link = BrokerLink(host="127.0.0.1", port=broker.port, keys=broker.gateway_files(), on_message=received.append)
    link.start()
    assert link.wait_connected(20)
    device = broker.connect("cam-1")
    wait_until(lambda: _publish(device, received), what="a message that the dying server has received")
    link.stop()  # without having acknowledged
    with running_server(parts, broker) as server:
        wait_until(lambda: len(stored(parts)) == 10, what="the same message again")
        old = received[0]
        server.link.acknowledge(Incoming(old.topic, old.payload, old.mid, old.qos, connection=0))  # of a connection that is gone: not sent


def _publish(device: Peer, received: list[Incoming]) -> bool:
    device.publish(READINGS, batch(0))
    return bool(received)


def test_the_server_survives_kill_9_of_the_broker(parts: TestParts, broker: RunningBroker) -> None:
    with running_server(parts, broker) as server:
        connections = server.link.connections
        broker.process.stop(9)
        wait_until(lambda: not server.link.is_connected, what="the loss of the connection")
        with pytest.raises(UnavailableError):
            server.link.send("covey/v1/d/cam-1/down/ack", b"x")
        with parts.db.begin() as session:
            outbox.publish(session, ACK, encode(Ack("e1", 7)), retain=True)
        broker.process.start()
        wait_until(lambda: server.link.connections > connections, what="the next connection")
        wait_until(lambda: all(row.sent_at for row in sent_messages(parts)), what="the outbox to be sent")
        device = broker.connect("cam-1")
        assert device.subscribe(ACK)
        wait_until(lambda: device.messages, what="what was queued while the broker was away")
        device.publish(READINGS, batch(0))
        wait_until(lambda: len(stored(parts)) == 10, what="readings after the restart")


def test_the_same_batch_twice_is_stored_once(parts: TestParts, broker: RunningBroker) -> None:
    with running_server(parts, broker):
        device = broker.connect("cam-1")
        for _ in range(3):
            device.publish(READINGS, batch(0))
        wait_until(lambda: _duplicates(parts) == 20, what="the repetitions to be counted")
    assert stored(parts) == list(range(10))


def _duplicates(parts: TestParts) -> int:
    with parts.db.read() as session:
        stream = session.get(ReadingStream, ("cam-1", "e1"))
    return stream.duplicates if stream else 0


def test_a_payload_that_the_broker_would_not_take_is_never_handed_over(parts: TestParts, broker: RunningBroker) -> None:
    with running_server(parts, broker) as server:
        with pytest.raises(PayloadTooLargeError):
            server.link.send(ACK, b"x" * (MAX_PAYLOAD_BYTES + 1))
        assert server.link.is_connected


def test_a_burst_is_taken_whole(parts: TestParts, broker: RunningBroker) -> None:
    device = broker.connect("cam-1")
    with running_server(parts, broker):
        for first in range(0, 3000, 10):
            device.client.publish(READINGS, batch(first), 1)
        wait_until(lambda: len(stored(parts)) == 3000, what="all of the burst")
    assert stored(parts) == list(range(3000))
