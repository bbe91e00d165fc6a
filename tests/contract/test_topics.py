"""Topics build and parse to the same thing, and nothing else parses."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from covey_contract.errors import InvalidIdError, InvalidTopicError
from covey_contract.ids import DeviceId, Digest
from covey_contract.limits import MAX_TOPIC_LEVELS
from covey_contract.topics import (
    DOWN_CHANNELS,
    UP_CHANNELS,
    Channel,
    chunk_topic,
    device_subscriptions,
    device_topic,
    parse_topic,
    server_subscriptions,
)

DIGEST = Digest("ab" * 32)


@pytest.mark.parametrize("channel", sorted(UP_CHANNELS | DOWN_CHANNELS, key=str))
def test_device_topics_round_trip(channel: Channel) -> None:
    topic = device_topic(DeviceId("pi-1"), channel)
    parsed = parse_topic(topic)
    assert (parsed.channel, parsed.device) == (channel, "pi-1")
    assert len(topic.split("/")) <= MAX_TOPIC_LEVELS


def test_chunk_topics_round_trip() -> None:
    parsed = parse_topic(chunk_topic(DIGEST, 12))
    assert (parsed.channel, parsed.digest, parsed.group) == (Channel.CHUNK, DIGEST, 12)


@pytest.mark.parametrize(
    "topic",
    [
        "",
        "covey",
        "covey/v1",
        "covey/v2/d/pi-1/status",
        "covey/v1/d/pi-1",
        "covey/v1/d/pi-1/up",
        "covey/v1/d/pi-1/up/unknown",
        "covey/v1/d/pi-1/up/want/more",
        "covey/v1/d/+/status",
        "covey/v1/d/../status",
        "covey/v1/d/PI/status",
        "covey/v1/d//status",
        f"covey/v1/a/{DIGEST}/-1",
        f"covey/v1/a/{DIGEST}/1.0",
        f"covey/v1/a/{DIGEST}/٣",
        f"covey/v1/a/{DIGEST}/9999999999",
        "covey/v1/a/short/1",
        f"covey/v1/a/{DIGEST}/1/2",
        "/covey/v1/d/pi-1/status",
    ],
)
def test_foreign_topics_are_refused(topic: str) -> None:
    with pytest.raises(InvalidTopicError):
        parse_topic(topic)


def test_a_bad_id_never_becomes_a_topic() -> None:
    with pytest.raises(InvalidIdError):
        device_topic(DeviceId("a/b"), Channel.STATUS)


@given(st.text(max_size=80))
def test_parsing_never_fails_in_another_way(topic: str) -> None:
    try:
        parse_topic(topic)
    except InvalidTopicError:
        return
    raise AssertionError(f"{topic!r} is not a topic of ours")


def test_the_server_listens_to_devices_only() -> None:
    assert all(filter_.startswith("covey/v1/d/+/") for filter_ in server_subscriptions())
    assert not any("down" in filter_ for filter_ in server_subscriptions())


def test_a_device_listens_to_itself_only() -> None:
    assert all(topic.startswith("covey/v1/d/pi-1/down/") for topic in device_subscriptions(DeviceId("pi-1")))
