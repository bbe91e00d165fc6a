"""What the tests of the whole device share."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.agent.integration.device import Device
from tests.fakes.agent.daemon import Daemon, make_identity
from tests.fakes.agent.fleet import FleetServer
from tests.fakes.nats_broker import running_broker


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Device]:
    """A running daemon without a model; a test may stop it to change its environment."""
    with running_broker(tmp_path / "server", devices=["cam-1"]) as broker, FleetServer(broker, "cam-1") as server:
        make_identity(tmp_path / "state", broker, "cam-1")
        server.repository.enrol(tmp_path / "state")
        daemon = Daemon(tmp_path / "state")
        daemon.start()
        yield Device(daemon, server, broker)
        daemon.stop(signal.SIGKILL)
