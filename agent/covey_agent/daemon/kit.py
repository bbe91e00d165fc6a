"""What every part of the daemon is given: who it is, its settings, and the outside through ports."""

from dataclasses import dataclass
from pathlib import Path

from covey_agent.core.backoff import Random
from covey_agent.daemon.nursery import Nursery
from covey_agent.daemon.timers import Action, Timers
from covey_agent.identity import Identity
from covey_agent.inbox import ActionDue, Post
from covey_agent.ports import Broker, Clock, StateStore
from covey_agent.settings import Settings
from covey_contract.ids import DeviceId
from covey_contract.topics import Channel, device_topic


@dataclass(frozen=True, slots=True)
class Kit:
    """Shared by all parts; holds no state of its own."""

    state_dir: Path
    identity: Identity
    settings: Settings
    boot: str  # id of this agent process
    pid: int
    clock: Clock
    random: Random
    store: StateStore
    nursery: Nursery
    timers: Timers
    broker: Broker
    post: Post
    may_restart: bool = False  # whether somebody starts this agent anew when it asks for that

    def topic(self, channel: Channel) -> str:
        """This device's topic."""
        return device_topic(DeviceId(self.identity.file.device), channel)

    def soon(self, action: Action) -> None:
        """Do something as the next event: a part never calls another one from within its own step."""
        self.post(ActionDue(action))
