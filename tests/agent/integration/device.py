"""A device with its server: the real daemon and its children, the real broker, and a server that signs and delivers."""

from dataclasses import dataclass

from tests.fakes.agent.daemon import Daemon
from tests.fakes.agent.fleet import FleetServer
from tests.fakes.nats_broker import RunningBroker

from covey_contract.messages import DeploymentState as S
from covey_contract.messages import Reported


@dataclass(frozen=True, slots=True)
class Device:
    """A device with its server."""

    daemon: Daemon
    server: FleetServer
    broker: RunningBroker

    @property
    def socket(self) -> str:
        """Where its applications ask."""
        return str(self.daemon.state_dir / "run" / "infer.sock")

    def commit_first(self) -> Reported:
        """Release 1 runs."""
        return self.server.wait_for(self.server.order(self.server.publish_release(1)), S.COMMITTED)
