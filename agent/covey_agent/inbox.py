"""The one inbox: everything that happens arrives here as a value, from whatever thread, and is handled one by one."""

from collections.abc import Callable
from dataclasses import dataclass

from covey_agent.core.jobs import ChildEvent
from covey_agent.core.machine import Happened


@dataclass(frozen=True, slots=True)
class Booted:
    """The agent has started."""


@dataclass(frozen=True, slots=True)
class BrokerConnected:
    """The broker accepted the connection and the subscriptions were sent."""


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
class TimerFired:
    """A timer that one of the parts set."""

    key: str


@dataclass(frozen=True, slots=True)
class MachineEvent:
    """Something for the deployment machine, found out by one of the parts."""

    happened: Happened
    deployment: str  # for which deployment it was meant; stale ones are dropped


@dataclass(frozen=True, slots=True)
class StopAsked:
    """SIGTERM or SIGINT."""


InboxEvent = Booted | BrokerConnected | BrokerLost | MessageArrived | ChildSpoke | ChildEnded | TimerFired | MachineEvent | StopAsked
Post = Callable[[InboxEvent], None]
