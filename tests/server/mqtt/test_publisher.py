"""The outbox reaches the broker in order, at least once, and never twice without need."""

from dataclasses import dataclass, field
from pathlib import Path

import pytest
from tests.fakes.server_parts import TestParts, make_parts, sent_messages

from covey_contract.errors import PayloadTooLargeError
from covey_contract.limits import MAX_PAYLOAD_BYTES
from covey_server import outbox
from covey_server.errors import UnavailableError
from covey_server.mqtt.publisher import DirectPublisher, OutboxPublisher
from covey_server.outbox import OutboxMessage


@dataclass
class Slip:
    """A receipt that the test confirms."""

    confirmed: bool = False

    def is_published(self) -> bool:
        """Whether the broker has it."""
        return self.confirmed


@dataclass
class FakeLink:
    """A broker in memory that can be away, or slow to acknowledge."""

    sent: list[tuple[str, bytes, bool]] = field(default_factory=list)
    slips: list[Slip] = field(default_factory=list)
    confirm: bool = True
    away: bool = False

    def send(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False) -> Slip:
        """Take one message."""
        assert qos == 1
        if len(payload) > MAX_PAYLOAD_BYTES:
            raise PayloadTooLargeError(topic, len(payload), MAX_PAYLOAD_BYTES)
        if self.away:
            raise UnavailableError("away")
        self.sent.append((topic, payload, retain))
        self.slips.append(Slip(self.confirm))
        return self.slips[-1]


@pytest.fixture
def parts(tmp_path: Path) -> TestParts:
    return make_parts(tmp_path)


@pytest.fixture
def link() -> FakeLink:
    return FakeLink()


@pytest.fixture
def publisher(parts: TestParts, link: FakeLink) -> OutboxPublisher:
    return OutboxPublisher(parts.db, link, clock=parts.clock, ack_s=0.0)


def queue(parts: TestParts, *payloads: bytes, topic: str = "t", retain: bool = False) -> None:
    with parts.db.begin() as session:
        for payload in payloads:
            outbox.publish(session, topic, payload, retain=retain)


def unsent(parts: TestParts) -> list[bytes]:
    return [row.payload for row in sent_messages(parts) if row.sent_at is None]


def test_rows_go_out_in_order_and_are_marked(parts: TestParts, link: FakeLink, publisher: OutboxPublisher) -> None:
    queue(parts, b"1", b"2", retain=True)
    queue(parts, b"3")
    assert publisher.run_once() == 3
    assert link.sent == [("t", b"1", True), ("t", b"2", True), ("t", b"3", False)]
    assert unsent(parts) == []
    assert publisher.run_once() == 0


def test_a_row_counts_as_sent_only_when_the_broker_has_it(parts: TestParts, link: FakeLink, publisher: OutboxPublisher) -> None:
    link.confirm = False
    queue(parts, b"1", b"2")
    assert publisher.run_once() == 0
    assert unsent(parts) == [b"1", b"2"]
    link.slips[0].confirmed = True
    assert publisher.run_once() == 1
    assert unsent(parts) == [b"2"]
    assert len(link.sent) == 2  # the link resends by itself; handing a row over again would double it


def test_a_broker_that_is_away_keeps_everything_in_order(parts: TestParts, link: FakeLink, publisher: OutboxPublisher) -> None:
    link.away = True
    queue(parts, b"1", b"2")
    with pytest.raises(UnavailableError):
        publisher.run_once()
    assert unsent(parts) == [b"1", b"2"]
    link.away = False
    queue(parts, b"3")
    publisher.run_once()
    assert [payload for _, payload, _ in link.sent] == [b"1", b"2", b"3"]


def test_a_worker_that_restarts_sends_again_what_it_cannot_know(parts: TestParts, link: FakeLink, publisher: OutboxPublisher) -> None:
    link.confirm = False
    queue(parts, b"1")
    publisher.run_once()
    link.confirm = True
    OutboxPublisher(parts.db, link, clock=parts.clock, ack_s=0.0).run_once()
    assert [payload for _, payload, _ in link.sent] == [b"1", b"1"]
    assert unsent(parts) == []


def test_a_row_that_can_never_be_sent_does_not_block_the_others(parts: TestParts, link: FakeLink, publisher: OutboxPublisher) -> None:
    with parts.db.begin() as session:
        session.add(OutboxMessage(topic="t", payload=b"x" * (MAX_PAYLOAD_BYTES + 1)))
    queue(parts, b"good")
    assert publisher.run_once() == 2
    assert [payload for _, payload, _ in link.sent] == [b"good"]


def test_the_outbox_takes_no_poison_message(parts: TestParts) -> None:
    with parts.db.begin() as session, pytest.raises(PayloadTooLargeError):
        outbox.publish_latest(session, "t", b"x" * (MAX_PAYLOAD_BYTES + 1))


def test_only_the_latest_of_a_topic_waits(parts: TestParts, link: FakeLink, publisher: OutboxPublisher) -> None:
    queue(parts, b"other", topic="u")
    for payload in (b"1", b"2", b"3"):
        with parts.db.begin() as session:
            outbox.publish_latest(session, "t", payload)
    publisher.run_once()
    assert link.sent == [("u", b"other", False), ("t", b"3", False)]


def test_a_row_that_replaces_one_under_way_is_still_sent(parts: TestParts, link: FakeLink, publisher: OutboxPublisher) -> None:
    """The broker confirms the old row after the new one has taken its place: the new one must not count as sent."""
    link.confirm = False
    with parts.db.begin() as session:
        outbox.publish_latest(session, "t", b"old")
    publisher.run_once()
    with parts.db.begin() as session:
        outbox.publish_latest(session, "t", b"new")
    link.slips[0].confirmed = link.confirm = True
    publisher.run_once()
    assert [payload for _, payload, _ in link.sent] == [b"old", b"new"]
    assert unsent(parts) == []


def test_a_direct_message_fails_at_once_when_the_broker_is_away(link: FakeLink) -> None:
    direct = DirectPublisher(link)
    direct.publish("a", b"chunk")
    link.away = True
    with pytest.raises(UnavailableError):
        direct.publish("a", b"chunk")
    assert direct.sent == 1
