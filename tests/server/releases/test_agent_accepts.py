"""What the server signs and delivers, judged by the agent's own code: both ends of the contract meet here."""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlmodel import select
from tests.fakes.agent_wheel import build_wheel
from tests.server.releases.bench import Bench, import_spec, make_bench
from tests.server.releases.test_delivery import MemoryBroker

from covey_agent.workers.errors import UntrustedError
from covey_agent.workers.trust import TrustedMetadata
from covey_contract.codec import decode, decode_release, digest_of
from covey_contract.ids import DeviceId
from covey_contract.messages import Desired, MetadataPart, Signed, UpgradeAgent, WantMetadata
from covey_server.devices import upgrades
from covey_server.outbox import OutboxMessage
from covey_server.parts import Parts
from covey_server.releases.delivery import Delivery
from covey_server.releases.director import FileDirector
from covey_server.releases.imports import import_release, store_file
from covey_server.releases.repository import TufRepository
from covey_server.releases.service import id_of
from covey_server.rollouts.service import create_rollout, start_rollout

NOW = datetime.now(UTC)  # TUF's expiry is compared with the machine's clock


@dataclass
class Meeting:
    """A server with a real repository, and a device that enrolled with it."""

    parts: Parts
    repository: TufRepository
    state_dir: Path
    delivery: Delivery
    broker: MemoryBroker

    def fetch_part(self, name: str, part: int) -> MetadataPart:
        self.delivery.accept(DeviceId("pi-1"), WantMetadata(id=f"w{part}", name=name, part=part))
        self.delivery.step(max_wait_s=0)
        return decode(self.broker.sent[-1].payload, MetadataPart)

    def metadata(self) -> TrustedMetadata:
        trusted = TrustedMetadata(self.state_dir, self.fetch_part)
        trusted.refresh()
        return trusted


@pytest.fixture
def meeting(tmp_path: Path) -> Meeting:
    bench: Bench = make_bench(tmp_path)
    settings = bench.parts.settings
    bench.clock.now = NOW
    repository = TufRepository.create(settings, NOW, clock=bench.clock)
    parts = Parts(
        settings=settings,
        db=bench.parts.db,
        clock=bench.clock,
        authority=bench.parts.authority,
        permissions=bench.parts.permissions,
        blobs=bench.parts.blobs,
        repository=repository,
        director=FileDirector.create(settings, repository),
    )
    bench.add_devices("pi-1", "pi-2")
    state_dir = tmp_path / "device"
    (state_dir / "tuf").mkdir(parents=True)
    (state_dir / "tuf" / "root.json").write_bytes(repository.newest_root())
    broker = MemoryBroker()
    return Meeting(parts, repository, state_dir, Delivery(parts.db, parts.blobs, repository, broker), broker)


def publish_and_start(meeting: Meeting) -> dict[str, Signed]:
    """A rollout to both devices; the orders as they were queued, by topic."""
    parts = meeting.parts
    file = parts.settings.path("artifact")
    file.write_bytes(b"model")
    with parts.db.begin() as session:
        release = import_release(
            session,
            import_spec(),
            {"onnx-int8.onnx": store_file(file, parts.blobs)},
            unmeasured=False,
            max_accuracy_drop=0.01,
            blobs=parts.blobs,
            repository=meeting.repository,
            now=NOW,
            actor="token:test",
        )
        session.flush()
        rollout = create_rollout(session, id_of(release), selector={"all": True}, phases=[{"name": "all"}], actor="user:x", now=NOW)
        session.flush()
        start_rollout(session, rollout.id, director=parts.director, actor="user:x", now=NOW)
    with parts.db.read() as session:
        return {message.topic.split("/")[3]: decode(message.payload, Signed) for message in session.exec(select(OutboxMessage))}


def test_a_device_verifies_its_order_and_fetches_the_manifest_that_it_names(meeting: Meeting) -> None:
    orders = publish_and_start(meeting)
    trusted = meeting.metadata()
    order = trusted.verify_order(orders["pi-1"], device="pi-1", now=NOW)
    assert isinstance(order, Desired)
    assert order.release is not None
    manifest = decode_release(trusted.fetch_manifest(order.release))
    assert (manifest.model, manifest.variants[0].artifact) == ("digits", digest_of(b"model"))


def test_a_device_refuses_the_order_of_another_device(meeting: Meeting) -> None:
    orders = publish_and_start(meeting)
    with pytest.raises(UntrustedError, match="is for device pi-2"):
        meeting.metadata().verify_order(orders["pi-2"], device="pi-1", now=NOW)


def test_a_device_refuses_an_order_that_a_broker_has_changed(meeting: Meeting) -> None:
    signed = publish_and_start(meeting)["pi-1"]
    forged = Signed(payload=signed.payload.replace(b'"version":1', b'"version":2'), keyid=signed.keyid, signature=signed.signature)
    with pytest.raises(UntrustedError):
        meeting.metadata().verify_order(forged, device="pi-1", now=NOW)


def test_a_withdrawn_release_cannot_be_fetched_any_more(meeting: Meeting) -> None:
    orders = publish_and_start(meeting)
    meeting.repository.remove_target("releases/digits/1.json")
    trusted = meeting.metadata()
    order = trusted.verify_order(orders["pi-1"], device="pi-1", now=NOW)
    assert isinstance(order, Desired)
    assert order.release is not None
    with pytest.raises(UntrustedError):
        trusted.fetch_manifest(order.release)


def test_a_device_fetches_a_task_with_the_longest_name(meeting: Meeting) -> None:
    code = b"def build_model(): ...\n"
    meeting.repository.add_target(f"tasks/{'t' * 64}/{digest_of(code)}.py", code)
    assert meeting.metadata().fetch_task("t" * 64, digest_of(code)) == code


def test_a_version_of_the_agent_is_signed_ordered_and_fetched(meeting: Meeting, tmp_path: Path) -> None:
    parts = meeting.parts
    wheel = build_wheel(tmp_path, "9.9.9").read_bytes()
    with parts.db.begin() as session:
        found = upgrades.publish_version(session, wheel, repository=meeting.repository, actor="token:test")
        again = upgrades.publish_version(session, wheel, repository=meeting.repository, actor="token:test")
        ident = upgrades.order_upgrade(
            session,
            "pi-1",
            "9.9.9",
            again=False,
            repository=meeting.repository,
            director=parts.director,
            actor="token:test",
            now=NOW,
        )
    assert found == again == upgrades.AgentVersion("9.9.9", digest_of(wheel))
    with parts.db.read() as session:
        (sent,) = [row for row in session.exec(select(OutboxMessage)) if row.topic and row.topic.endswith("pi-1/down/command")]
    trusted = meeting.metadata()
    order = trusted.verify_order(decode(bytes(sent.payload), Signed), device="pi-1", now=NOW)
    assert isinstance(order, UpgradeAgent)
    assert (order.id, order.version, order.digest) == (ident, "9.9.9", digest_of(wheel))
    assert trusted.fetch_agent(order.version, order.digest) == wheel
    with pytest.raises(UntrustedError, match="the order names"):
        trusted.fetch_agent(order.version, "0" * 64)
