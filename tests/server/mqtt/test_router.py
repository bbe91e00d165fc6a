"""What the router does with good, bad and hostile messages."""

import logging
from pathlib import Path
from typing import Any

import msgspec
import pytest
from sqlmodel import Session, select
from tests.fakes.server_parts import TestParts, live_events, make_parts

from covey_contract.codec import encode
from covey_contract.errors import StaleMessageError
from covey_contract.ids import DeviceId
from covey_contract.limits import MAX_PAYLOAD_BYTES
from covey_contract.messages import Outcome, Presence, Profile, Reading, ReadingBatch, Renewal, Reply, Reported, Status
from covey_contract.topics import UP_CHANNELS, Channel
from covey_server import outbox
from covey_server.errors import ConflictError
from covey_server.mqtt.router import Router
from covey_server.outbox import LiveEvent
from covey_server.parts import Parts

STATUS = encode(Status(Presence.ONLINE, "b1", 1))
CHANNELS = sorted(UP_CHANNELS, key=lambda channel: channel.value)
MALFORMED = {
    "empty": b"",
    "half": b"{",
    "not text": b"\xff\xfe\x00",
    "null": b"null",
    "list": b"[]",
    "deep": b"[" * 50_000,
    "incomplete": b'{"type":"status"}',
    "not compressed": b"\x78\x9c" + b"\x00" * 50,
    "other encoding": msgspec.msgpack.encode({"a": 1}),
}
GOOD: dict[Channel, bytes] = {
    Channel.STATUS: STATUS,
    Channel.REPORTED: encode(Reported(1, "0.1", Profile.DEVICE, 1)),
    Channel.READINGS: encode(ReadingBatch("e1", 0, [Reading(1, "infer", {"p50_ms": 1.0})])),
    Channel.REPLY: encode(Reply("c1", Outcome.ACCEPTED, 1)),
    Channel.RENEW: encode(Renewal("a request")),
    Channel.WANT: b'{"type":"want_metadata","id":"w1","name":"metadata/timestamp.json"}',
}


@pytest.fixture
def parts(tmp_path: Path) -> TestParts:
    return make_parts(tmp_path)


def note(name: str) -> Any:
    """A handler that leaves a row."""

    def handler(_parts: Parts, session: Session, device: DeviceId, _message: object) -> None:
        outbox.emit(session, name, {"device": device})

    return handler


def refuse_stale(_parts: Parts, _session: Session, _device: DeviceId, _message: object) -> None:
    raise StaleMessageError("old")


def refuse_conflict(_parts: Parts, _session: Session, _device: DeviceId, _message: object) -> None:
    raise ConflictError("no")


def names(parts: TestParts) -> list[str]:
    return [event.name for event in live_events(parts)]


def router_with(parts: TestParts, *handlers: Any) -> Router:
    router = Router(parts)
    for channel in UP_CHANNELS:
        for handler in handlers:
            router.register(channel, handler)
    return router


def topic_of(channel: Channel, device: str = "cam-1") -> str:
    return f"covey/v1/d/{device}/{channel.value}"


@pytest.mark.parametrize("channel", CHANNELS)
def test_a_good_message_reaches_its_handler(parts: TestParts, channel: Channel) -> None:
    router = router_with(parts, note("seen"))
    assert router.route(topic_of(channel), GOOD[channel])
    assert names(parts) == ["seen"]
    assert router.handled == {channel.value: 1}


@pytest.mark.parametrize("channel", CHANNELS)
def test_malformed_bytes_on_every_topic_are_counted_and_dropped(parts: TestParts, channel: Channel) -> None:
    router = router_with(parts, note("seen"))
    for name, payload in MALFORMED.items():
        assert not router.route(topic_of(channel), payload), name
    assert router.refused == {"malformed": len(MALFORMED)}
    assert names(parts) == []


@pytest.mark.parametrize("channel", CHANNELS)
def test_a_payload_over_the_limit_is_refused_before_it_is_parsed(parts: TestParts, channel: Channel) -> None:
    router = router_with(parts, note("seen"))
    assert not router.route(topic_of(channel), b" " * (MAX_PAYLOAD_BYTES + 1))
    assert router.refused == {"too_large": 1}


@pytest.mark.parametrize(
    "topic",
    [
        "",
        "covey/v1/d/cam-1",
        "covey/v1/d/cam-1/up/unknown",
        "covey/v1/d/CAM/status",
        "covey/v1/d//status",
        "covey/v1/d/+/status",
        "covey/v1/d/../status",
        "covey/v1/d/cam-1\n/status",
        f"covey/v1/d/{'x' * 65}/status",
        "covey/v2/d/cam-1/status",
        "\x00" * 1000,
    ],
)
def test_a_topic_that_is_none_is_refused(parts: TestParts, topic: str) -> None:
    router = router_with(parts, note("seen"))
    assert not router.route(topic, STATUS)
    assert router.refused == {"invalid_topic": 1}


@pytest.mark.parametrize("topic", ["covey/v1/d/cam-1/down/desired", f"covey/v1/a/{'a' * 64}/0"])
def test_what_only_the_server_says_is_not_taken(parts: TestParts, topic: str) -> None:
    router = router_with(parts, note("seen"))
    assert not router.route(topic, STATUS)
    assert router.refused == {"unexpected_channel": 1}


def test_handlers_of_one_channel_run_in_order(parts: TestParts) -> None:
    router_with(parts, note("first"), note("second")).route(topic_of(Channel.STATUS), STATUS)
    assert names(parts) == ["first", "second"]


def test_a_refusal_by_a_later_handler_undoes_the_earlier_ones(parts: TestParts) -> None:
    router = router_with(parts, note("first"), refuse_conflict)
    assert not router.route(topic_of(Channel.STATUS), STATUS)
    assert names(parts) == []
    assert router.refused == {"ConflictError": 1}


def test_one_refused_message_takes_no_other_with_it(parts: TestParts) -> None:
    router = Router(parts)
    router.register(Channel.STATUS, note("status"))
    router.register(Channel.REPLY, note("half"))
    router.register(Channel.REPLY, refuse_stale)
    burst = [(topic_of(channel), GOOD[channel]) for channel in (Channel.STATUS, Channel.REPLY, Channel.STATUS)]
    assert router.route_many([*burst, ("nonsense", b""), *burst]) == 4
    assert names(parts) == ["status"] * 4
    assert router.refused == {"stale": 2, "invalid_topic": 1}
    assert router.handled == {"status": 4}


def test_a_fault_of_ours_undoes_the_whole_burst(parts: TestParts) -> None:
    def fails(_parts: Parts, _session: Session, _device: DeviceId, _message: object) -> None:
        raise ZeroDivisionError

    router = Router(parts)
    router.register(Channel.STATUS, note("status"))
    router.register(Channel.REPLY, fails)
    with pytest.raises(ZeroDivisionError):
        router.route_many([(topic_of(Channel.STATUS), STATUS), (topic_of(Channel.REPLY), GOOD[Channel.REPLY])])
    with parts.db.read() as session:
        assert session.exec(select(LiveEvent)).all() == []


def test_the_same_refusal_is_a_warning_once(parts: TestParts, caplog: pytest.LogCaptureFixture) -> None:
    router = router_with(parts, note("seen"))
    with caplog.at_level(logging.DEBUG, logger="covey_server.mqtt.router"):
        for _ in range(3):
            router.route(topic_of(Channel.STATUS), b"{")
    assert [record.levelname for record in caplog.records] == ["WARNING", "DEBUG", "DEBUG"]


def test_a_refused_topic_cannot_forge_a_log_line(parts: TestParts, caplog: pytest.LogCaptureFixture) -> None:
    router_with(parts, note("seen")).route("x\nERROR everything is fine", b"")
    assert "\n" not in caplog.records[0].getMessage()
