"""The server orders an upgrade of the agent: signed by TUF and the director, fetched over MQTT, put on trial; or refused, and why."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.agent.integration.device import Device
from tests.agent.integration.test_upgrade import NEXT, QUICK
from tests.fakes.agent.daemon import Daemon, make_identity
from tests.fakes.agent.fleet import FleetServer
from tests.fakes.agent_wheel import build_wheel
from tests.fakes.nats_broker import running_broker, wait_until
from tests.fakes.tuf_repository import Director

from covey_agent.versions_file import VersionsFile
from covey_contract.messages import Outcome, Reply, UpgradeAgent

pytestmark = [pytest.mark.broker, pytest.mark.slow]


@pytest.fixture
def launched(tmp_path: Path) -> Iterator[Device]:
    with running_broker(tmp_path / "server", devices=["cam-1"]) as broker, FleetServer(broker, "cam-1") as server:
        make_identity(tmp_path / "state", broker, "cam-1")
        server.repository.enrol(tmp_path / "state")
        daemon = Daemon(tmp_path / "state", environment=dict(QUICK), module="covey_agent.launch")
        daemon.start()
        try:
            wait_until(lambda: server.heard.reported, what="the agent to report", timeout_s=90)
            yield Device(daemon, server, broker)
        finally:
            daemon.stop()


def order(device: Device, digest: str, *, ident: str = "upg-1", director: Director | None = None) -> Reply:
    expires_at = int(time.time() * 1000) + 600_000
    command = UpgradeAgent(id=ident, device="cam-1", expires_at=expires_at, version=NEXT, digest=digest)
    device.server.command(command, director=director)

    def found() -> list[Reply]:
        return [reply for reply in device.server.heard.replies if reply.id == ident]

    wait_until(found, what=f"the answer: {device.daemon.log()}", timeout_s=90)
    return found()[0]


def test_a_signed_version_is_fetched_and_proven(launched: Device, tmp_path: Path) -> None:
    digest = launched.server.publish_agent(build_wheel(tmp_path, NEXT))
    reply = order(launched, digest)
    assert (reply.outcome, reply.values) == (Outcome.DONE, {"version": NEXT}), reply.reason
    wait_until(lambda: launched.server.heard.reported[-1].agent_version == NEXT, what="the new version to report", timeout_s=90)
    file = VersionsFile(launched.daemon.state_dir)
    wait_until(lambda: file.load().trial is None, what="the version to be proven", timeout_s=90)
    assert file.load().current == NEXT
    assert order(launched, digest) == reply, "the same order again gets the same answer"
    assert not list(file.folder.glob("*.whl"))


def test_what_is_not_signed_or_not_allowed_is_refused(launched: Device, tmp_path: Path) -> None:
    wheel = build_wheel(tmp_path, NEXT)
    unlisted = order(launched, "0" * 64, ident="upg-1")
    assert (unlisted.outcome, "not among the fleet's signed targets" in unlisted.reason) == (Outcome.REFUSED, True)
    digest = launched.server.publish_agent(wheel)
    forged = order(launched, digest, ident="upg-2", director=Director())
    assert (forged.outcome, "is signed by key" in forged.reason) == (Outcome.REFUSED, True)
    other = order(launched, "1" * 64, ident="upg-3")
    assert (other.outcome, "the order names" in other.reason) == (Outcome.REFUSED, True)

    launched.daemon.environment["COVEY_AGENT_DEPLOY_AGENT_UPGRADES"] = "no"
    heard = len(launched.server.heard.reported)
    launched.daemon.stop()
    launched.daemon.start()
    wait_until(lambda: len(launched.server.heard.reported) > heard, what="the agent with other settings", timeout_s=90)
    own = order(launched, digest, ident="upg-4")
    assert (own.outcome, "agent_upgrades" in own.reason) == (Outcome.REFUSED, True)
    assert VersionsFile(launched.daemon.state_dir).load().current == ""
