"""The one inbox: everything that happens outside the event loop arrives here as a value, and is handled one by one."""

from collections.abc import Callable
from dataclasses import dataclass

from covey_agent.core.jobs import ChildEvent


@dataclass(frozen=True, slots=True)
class BrokerConnected:
    """The broker accepted the connection and the subscriptions were sent."""

    certificate: str = ""  # path of the certificate by which it did


@dataclass(frozen=True, slots=True)
class BrokerLost:
    """The connection ended, or an attempt failed."""

    reason: str


@dataclass(frozen=True, slots=True)
class MessageArrived:
    """One MQTT message."""

    topic: str
    payload: bytes


@dataclass(frozen=True, slots=True)
class ChildSpoke:
    """A child wrote an event."""

    child: int
    event: ChildEvent


@dataclass(frozen=True, slots=True)
class ChildEnded:
    """A child is gone; `reason` is fit for a report, `clean` says that it ended by itself with exit code 0."""

    child: int
    reason: str
    clean: bool


@dataclass(frozen=True, slots=True)
class ActionDue:
    """Something that a part wants done next, from the event loop and not from within what it does now."""

    action: Callable[[], None]


RESTART = "SIGHUP"  # the stop after which the launcher starts the current version


@dataclass(frozen=True, slots=True)
class StopAsked:
    """SIGTERM, SIGINT, SIGHUP to start anew, or the word for another reason."""

    signal: str


InboxEvent = BrokerConnected | BrokerLost | MessageArrived | ChildSpoke | ChildEnded | ActionDue | StopAsked
Post = Callable[[InboxEvent], None]
