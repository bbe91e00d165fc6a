"""MQTT topics: one function to build each, one to parse any of them.

Every topic begins with `covey/v1`. A device may publish only below its own `up/` and to its own `status`, and may read only
its own `down/` and artifact chunks below `a/`; the broker enforces this by the certificate's CN, the server checks it again.
"""

from dataclasses import dataclass
from enum import Enum

from covey_contract.errors import ContractError, InvalidTopicError
from covey_contract.ids import DeviceId, Digest, parse_device_id, parse_digest

PREFIX = "covey/v1"


class Channel(Enum):
    """What a topic carries; the value is the topic's tail."""

    STATUS = "status"  # device -> server, last will, retained
    REPORTED = "up/reported"  # device -> server: full reported state
    READINGS = "up/readings"  # device -> server: a batch of readings
    WANT = "up/want"  # device -> server: chunks or metadata it lacks
    REPLY = "up/reply"  # device -> server: answer to one command
    RENEW = "up/renew"  # device -> server: request for a new certificate
    DESIRED = "down/desired"  # server -> device, retained: signed desired state
    COMMAND = "down/command"  # server -> device: signed command
    ACK = "down/ack"  # server -> device: readings committed up to
    CERTIFICATE = "down/certificate"  # server -> device: answer to a request for a new certificate
    METADATA = "down/metadata"  # server -> device: TUF metadata or a manifest, in parts
    CHUNK = "a"  # server -> all who want it: artifact chunks


UP_CHANNELS = frozenset({Channel.STATUS, Channel.REPORTED, Channel.READINGS, Channel.WANT, Channel.REPLY, Channel.RENEW})
DOWN_CHANNELS = frozenset({Channel.DESIRED, Channel.COMMAND, Channel.ACK, Channel.CERTIFICATE, Channel.METADATA})
_BY_TAIL = {channel.value: channel for channel in UP_CHANNELS | DOWN_CHANNELS}


@dataclass(frozen=True, slots=True)
class Topic:
    """A parsed topic: `device` for a device's channels, `digest` and `group` for chunks."""

    channel: Channel
    device: DeviceId | None = None
    digest: Digest | None = None
    group: int | None = None


def device_topic(device: DeviceId, channel: Channel) -> str:
    """The topic of one device's channel."""
    return f"{PREFIX}/d/{parse_device_id(device)}/{channel.value}"


def chunk_topic(digest: Digest, group: int) -> str:
    """The topic on which one group of an artifact's chunks is published."""
    if group < 0:
        raise InvalidTopicError(f"group must be >= 0, got {group}")
    return f"{PREFIX}/a/{parse_digest(digest)}/{group}"


def server_subscriptions() -> list[str]:
    """The filters to which the server's gateway subscribes: everything that devices send."""
    return [f"{PREFIX}/d/+/{channel.value}" for channel in sorted(UP_CHANNELS, key=lambda c: c.value)]


def device_subscriptions(device: DeviceId) -> list[str]:
    """The topics to which an agent's main connection subscribes."""
    return [device_topic(device, channel) for channel in (Channel.DESIRED, Channel.COMMAND, Channel.ACK, Channel.CERTIFICATE)]


def parse_topic(topic: str) -> Topic:
    """Parse a full topic. Raises InvalidTopicError for anything that is not exactly one of Covey's."""
    levels = topic.split("/")
    if levels[:2] != PREFIX.split("/") or len(levels) < 5:
        raise InvalidTopicError(f"expected a topic below {PREFIX}/, got {topic!r:.120}")
    try:
        if levels[2] == "a" and len(levels) == 5:
            if not (levels[4].isascii() and levels[4].isdecimal() and len(levels[4]) <= 9):
                raise InvalidTopicError(f"expected a chunk group number, got {levels[4]!r:.40}")
            return Topic(Channel.CHUNK, digest=parse_digest(levels[3]), group=int(levels[4]))
        if levels[2] == "d":
            channel = _BY_TAIL.get("/".join(levels[4:]))
            if channel is not None:
                return Topic(channel, device=parse_device_id(levels[3]))
    except InvalidTopicError:
        raise
    except ContractError as exc:
        raise InvalidTopicError(str(exc)) from exc
    raise InvalidTopicError(f"unknown topic {topic!r:.120}")
