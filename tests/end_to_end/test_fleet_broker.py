"""What a device with a true certificate can do to the fleet by sending rubbish: be counted. And what revoking one does: end its session."""

import json
import time
import zlib
from collections.abc import Iterator

import pytest
from tests.end_to_end.live_fleet import Fleet
from tests.fakes.nats_broker import Peer, Process, RunningBroker
from tests.fakes.pki import ClientFiles

from covey_agent.client import Client
from covey_contract.codec import encode
from covey_contract.ids import DeviceId
from covey_contract.limits import MAX_PAYLOAD_BYTES
from covey_contract.messages import Profile, Reported
from covey_contract.topics import UP_CHANNELS, Channel, device_topic
from covey_server.broker.files import BrokerFiles
from covey_server.broker.permissions import NatsPermissions
from covey_server.devices.authority import FileAuthority
from covey_server.processes import ProcessSpec
from covey_server.settings import load_settings

pytestmark = [pytest.mark.end_to_end, pytest.mark.slow, pytest.mark.timeout(400)]
GUEST = DeviceId("guest-noisy")
CHANNELS = sorted(UP_CHANNELS, key=lambda channel: channel.value)
RUBBISH = (
    b"",
    b"\x00\xff\xfe",
    b"{",
    b"null",
    b"[" * 50_000,
    b'{"type":"unheard-of"}',
    json.dumps({"type": "ack", "epoch": "e", "upto": 1}).encode(),
    zlib.compress(b"\x00" * 20_000_000),
    zlib.compress(b"no readings"),
    zlib.compress(b"\x00" * 1000)[:-4],
    b"x" * (MAX_PAYLOAD_BYTES + 1),  # a little more than Covey allows and less than the broker refuses
)


@pytest.fixture(scope="module")
def broker(fleet: Fleet) -> RunningBroker:
    """The fleet's own broker, to connect to with a certificate that was got by enrolling."""
    settings = load_settings(fleet.stage.server_dir)
    nobody = Process(ProcessSpec("broker", [], {}, None, lambda: True))
    done = fleet.agent("enroll", "--token", fleet.invite(GUEST), "--state-dir", str(fleet.stage.state_dir(GUEST)))
    assert done.returncode == 0, done.stderr
    return RunningBroker(settings, FileAuthority.open(settings), nobody, NatsPermissions(BrokerFiles.of(settings)))


@pytest.fixture
def guest(fleet: Fleet, broker: RunningBroker) -> Iterator[Peer]:
    """An enrolled device whose program is not the agent."""
    identity = fleet.stage.state_dir(GUEST) / "identity"
    peer = broker.connect(GUEST, files=ClientFiles(identity / "device.crt", identity / "device.key", identity / "ca.crt"))
    yield peer
    peer.close()


def refused(fleet: Fleet) -> float:
    return fleet.metric("covey_mqtt_refused")


def state_of_guest(fleet: Fleet) -> dict[str, object]:
    device = fleet.device(GUEST)
    return {name: device[name] for name in ("reported", "presence", "state")}


def wait_refused(fleet: Fleet, before: float, count: int) -> None:
    fleet.wait(f"{count} refusals in /metrics", lambda: refused(fleet) >= before + count)
    assert refused(fleet) == before + count


@pytest.mark.parametrize("channel", CHANNELS, ids=[channel.value for channel in CHANNELS])
def test_rubbish_is_counted_and_changes_nothing(fleet: Fleet, guest: Peer, channel: Channel) -> None:
    before, seen = refused(fleet), state_of_guest(fleet)
    worker = fleet.server_child("worker").pid
    for payload in RUBBISH:
        guest.publish(device_topic(GUEST, channel), payload)
    wait_refused(fleet, before, len(RUBBISH))
    assert state_of_guest(fleet) == seen
    assert fleet.server_child("worker").pid == worker, "the worker had to be started again"
    fleet.wait_ready()


def test_a_payload_over_the_brokers_limit_ends_the_connection_of_its_sender_only(fleet: Fleet, guest: Peer) -> None:
    guest.publish(device_topic(GUEST, Channel.READINGS), b"x" * (2 * MAX_PAYLOAD_BYTES))
    fleet.wait("the end of the connection", lambda: guest.disconnects)
    assert {fleet.device(name)["presence"] for name in fleet.stage.devices} == {"online"}


def test_a_message_in_the_name_of_another_is_refused_by_the_broker(fleet: Fleet, guest: Peer) -> None:
    victim = fleet.stage.devices[0]
    before = fleet.device(victim)["reported"]
    forged = Reported(generation=1_000_000, agent_version="forged", profile=Profile.DEVICE, at=1)
    true = Reported(generation=1, agent_version="true", profile=Profile.DEVICE, at=int(time.time() * 1000))
    guest.publish(device_topic(DeviceId(victim), Channel.REPORTED), encode(forged))
    guest.publish(device_topic(GUEST, Channel.REPORTED), encode(true))  # comes after it on the same connection
    fleet.wait("the guest's own report", lambda: fleet.device(GUEST)["agent_version"] == "true")
    after = fleet.device(victim)["reported"]
    assert after["agent_version"] == before["agent_version"]
    assert after["generation"] < forged.generation


def test_revoking_a_device_drops_its_session_at_once_and_it_serves_on(fleet: Fleet) -> None:
    name = "guest-revoked"
    fleet.join(name)
    release = fleet.publish()
    fleet.deploy(release, name)
    assert fleet.stage.agent_json(name, "status")["connected"] is True
    done = fleet.covey("device", "revoke", name)
    assert done.returncode == 0, done.stderr
    fleet.wait("the session to end", lambda: not fleet.stage.agent_json(name, "status")["connected"], timeout_s=15)
    assert fleet.device(name)["state"] == "revoked"
    fleet.wait("the server sees it go", lambda: fleet.device(name)["presence"] == "offline", timeout_s=15)
    with Client(fleet.socket(name), timeout_s=30) as client:
        assert client.infer([[[0.0] * 28] * 28]).version == release["version"]
    assert fleet.stage.troupe.is_running(name)
    assert fleet.covey("device", "invite", name).returncode == 0, "a revoked device could never come back"
    fleet.stage.troupe.stop(name)
