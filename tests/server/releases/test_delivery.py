"""Delivery with an in-memory broker: what a wave of devices costs, and what is never sent."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from sqlmodel import select
from tests.server.releases.bench import Bench, import_spec, make_bench

from covey_contract.codec import decode, digest_of
from covey_contract.ids import DeviceId
from covey_contract.limits import CHUNK_BYTES, GROUP_CHUNKS, METADATA_PART_BYTES
from covey_contract.messages import Chunk, MetadataPart, WantChunks, WantMetadata
from covey_contract.topics import Channel, parse_topic
from covey_server.mqtt.router import Router
from covey_server.releases.delivery import Delivery, DeliveryLimits
from covey_server.releases.handlers import want_handler
from covey_server.releases.imports import StoredFile, import_release, store_file
from covey_server.releases.service import id_of, withdraw_release
from covey_server.triggers.models import Alert, Severity

ARTIFACT = bytes(range(256)) * 256 * GROUP_CHUNKS + b"tail"  # one full group and one chunk of 4 bytes
FULL = (1 << GROUP_CHUNKS) - 1


@dataclass
class Sent:
    """A message that the broker acknowledges when told to."""

    topic: str
    payload: bytes
    acknowledged: bool

    def is_published(self) -> bool:
        return self.acknowledged


@dataclass
class MemoryBroker:
    """Keeps what was published; `acknowledges` says whether it answers."""

    acknowledges: bool = True
    sent: list[Sent] = field(default_factory=list)

    def publish(self, topic: str, payload: bytes, qos: int) -> Sent:
        assert qos == 1
        self.sent.append(Sent(topic, payload, self.acknowledges))
        return self.sent[-1]


@dataclass
class Seconds:
    """A monotonic clock that tests move."""

    now: float = 100.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Scene:
    """One published artifact, and a delivery that steps by hand."""

    bench: Bench
    broker: MemoryBroker
    clock: Seconds
    delivery: Delivery
    digest: str
    release: int

    def want(self, device: str, *, group: int = 0, missing: int = FULL, digest: str = "") -> None:
        self.delivery.accept(DeviceId(device), WantChunks(digest=digest or self.digest, group=group, missing=missing))

    def run(self, *, steps: int = 200, seconds: float = 0.06) -> None:
        self.delivery.step(max_wait_s=0)
        self.clock.now += seconds
        for _ in range(steps):
            self.delivery.step(max_wait_s=0)

    def chunks(self) -> list[int]:
        return [decode(sent.payload, Chunk).index for sent in self.broker.sent if parse_topic(sent.topic).channel is Channel.CHUNK]


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    bench = make_bench(tmp_path)
    file = tmp_path / "onnx-int8.onnx"
    file.write_bytes(ARTIFACT)
    stored = store_file(file, bench.parts.blobs)
    release = publish(bench, stored)
    broker, clock = MemoryBroker(), Seconds()
    yield Scene(bench, broker, clock, make_delivery(bench, broker, clock), stored.digest, release)
    bench.parts.db.close()


def publish(bench: Bench, stored: StoredFile) -> int:
    with bench.parts.db.begin() as session:
        release = import_release(
            session,
            import_spec(),
            {"onnx-int8.onnx": stored},
            unmeasured=False,
            max_accuracy_drop=0.01,
            blobs=bench.parts.blobs,
            repository=bench.repository,
            now=bench.clock(),
            actor="token:test",
        )
        return id_of(release)


def make_delivery(bench: Bench, broker: MemoryBroker, clock: Seconds, **bounds: float) -> Delivery:
    limits = DeliveryLimits(**bounds)  # type: ignore[arg-type]  # numbers of both kinds
    return Delivery(bench.parts.db, bench.parts.blobs, bench.repository, broker, bounds=limits, clock=clock)


def test_fifty_devices_that_want_the_same_group_cost_one_send_of_it(scene: Scene) -> None:
    for number in range(50):
        scene.want(f"pi-{number}")
    scene.run()
    assert scene.chunks() == list(range(GROUP_CHUNKS))
    assert {sent.topic for sent in scene.broker.sent} == {f"covey/v1/a/{scene.digest}/0"}
    assert scene.delivery.counters["chunks_coalesced"] == 49 * GROUP_CHUNKS


def test_a_whole_wave_of_resuming_devices_costs_little_more_than_the_artifact(scene: Scene) -> None:
    for number in range(50):
        scene.want(f"pi-{number}", missing=FULL & ~(number * 37))
    scene.run()
    for number in range(50):
        scene.want(f"pi-{number}", group=1, missing=1)
    scene.run()
    assert len(scene.chunks()) == GROUP_CHUNKS + 1


def test_chunks_carry_the_artifacts_bytes(scene: Scene) -> None:
    scene.want("pi-1")
    scene.want("pi-1", group=1, missing=1)
    scene.run()
    data = {chunk.index: chunk.data for chunk in (decode(sent.payload, Chunk) for sent in scene.broker.sent)}
    assert b"".join(data[index] for index in sorted(data)) == ARTIFACT
    assert len(data[GROUP_CHUNKS]) == 4


@pytest.mark.parametrize(("group", "missing"), [(1, 0b10), (2, 1), (10**9, 1), (1, FULL)])
def test_chunks_that_do_not_exist_are_refused_and_counted(scene: Scene, group: int, missing: int) -> None:
    scene.want("pi-1", group=group, missing=missing)
    scene.run(steps=2)
    assert scene.broker.sent == []
    assert scene.delivery.counters["refused_out_of_range"] == 1


def test_what_no_release_holds_is_refused_even_if_it_is_in_the_store(scene: Scene) -> None:
    secret = scene.bench.parts.blobs.put(b"somebody's calibration data")
    scene.want("pi-1", digest=secret, missing=1)
    scene.want("pi-1", digest=digest_of(b"nothing"), missing=1)
    scene.run(steps=2)
    assert scene.broker.sent == []
    assert scene.delivery.counters["refused_unknown_digest"] == 2


def test_a_withdrawn_release_is_not_delivered_any_more(scene: Scene) -> None:
    scene.want("pi-1")
    scene.delivery.step(max_wait_s=0)
    with scene.bench.parts.db.begin() as session:
        withdraw_release(session, scene.release, repository=scene.bench.repository, actor="user:x")
    scene.clock.now += 6  # the catalogue believes itself for 5 seconds
    scene.run(steps=3)
    assert scene.broker.sent == []


def test_a_rotten_artifact_is_never_sent(scene: Scene) -> None:
    path = scene.bench.parts.blobs.path(scene.digest)
    path.write_bytes(ARTIFACT[:-1] + b"!")
    scene.want("pi-1")
    scene.run(steps=3)
    assert scene.broker.sent == []
    assert scene.delivery.counters["refused_unknown_digest"] == 1
    with scene.bench.parts.db.read() as session:
        alert = session.exec(select(Alert)).one()
    assert (alert.what, alert.severity, alert.subject) == ("artifact_damaged", Severity.CRITICAL, scene.digest)
    assert "restore it from a backup" in alert.detail


def test_no_more_is_in_flight_than_the_cap(scene: Scene) -> None:
    scene.broker.acknowledges = False
    scene.delivery = make_delivery(scene.bench, scene.broker, scene.clock, max_inflight=3)
    scene.want("pi-1")
    scene.run()
    assert len(scene.broker.sent) == 3
    for sent in scene.broker.sent:
        sent.acknowledged = True
    scene.run()
    assert len(scene.broker.sent) == 6


def test_a_broker_that_stands_still_makes_wants_be_given_up_not_piled_up(scene: Scene) -> None:
    scene.broker.acknowledges = False
    scene.delivery = make_delivery(scene.bench, scene.broker, scene.clock, max_inflight=2)
    scene.want("pi-1")
    scene.run(steps=5)
    scene.run(steps=5, seconds=11)
    scene.broker.acknowledges = True
    scene.run(steps=5)
    assert len(scene.broker.sent) == 2
    assert scene.delivery.counters["dropped_stalled"] == 2
    scene.want("pi-1")
    scene.run()
    assert len(scene.broker.sent) == 2 + GROUP_CHUNKS


def test_the_rate_bounds_what_is_sent_a_second(scene: Scene) -> None:
    scene.delivery = make_delivery(scene.bench, scene.broker, scene.clock, bytes_per_s=2.0 * CHUNK_BYTES, burst_bytes=1.0 * CHUNK_BYTES)
    scene.want("pi-1")
    scene.run(steps=10)
    assert len(scene.broker.sent) == 1
    scene.run(steps=10, seconds=0.5)
    assert len(scene.broker.sent) == 2


def test_a_full_queue_drops_and_counts(scene: Scene) -> None:
    scene.delivery = make_delivery(scene.bench, scene.broker, scene.clock, queue_length=2)
    for _ in range(5):
        scene.want("pi-1")
    assert scene.delivery.counters["dropped_queue_full"] == 3


def metadata(scene: Scene, name: str, part: int = 0) -> MetadataPart | None:
    before = len(scene.broker.sent)
    scene.delivery.accept(DeviceId("pi-1"), WantMetadata(id="w1", name=name, part=part))
    scene.run(steps=1)
    if len(scene.broker.sent) == before:
        return None
    assert scene.broker.sent[-1].topic == "covey/v1/d/pi-1/down/metadata"
    return decode(scene.broker.sent[-1].payload, MetadataPart)


def test_metadata_comes_in_parts_on_the_devices_own_topic(scene: Scene) -> None:
    data = b"m" * METADATA_PART_BYTES + b"rest"
    scene.bench.repository.files["metadata/2.targets.json"] = data
    parts = [metadata(scene, "metadata/2.targets.json", part) for part in (0, 1)]
    assert [part and (part.id, part.part, part.parts) for part in parts] == [("w1", 0, 2), ("w1", 1, 2)]
    assert b"".join(part.data for part in parts if part) == data
    assert metadata(scene, "metadata/2.targets.json", 2) is None
    assert scene.delivery.counters["refused_out_of_range"] == 1


def test_a_file_that_is_not_there_is_answered_with_no_parts(scene: Scene) -> None:
    assert metadata(scene, "metadata/9.root.json") == MetadataPart(id="w1", part=0, parts=0)


def test_an_empty_file_is_one_empty_part(scene: Scene) -> None:
    scene.bench.repository.files["targets/x.json"] = b""
    assert metadata(scene, "targets/x.json") == MetadataPart(id="w1", part=0, parts=1)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b'{"type":"want_chunks"}',
        b'{"type":"want_chunks","digest":"../../etc","group":0,"missing":1}',
        b'{"type":"want_chunks","digest":"' + b"a" * 64 + b'","group":-1,"missing":1}',
        b'{"type":"want_chunks","digest":"' + b"a" * 64 + b'","group":0,"missing":65536}',
        b'{"type":"want_chunks","digest":"' + b"a" * 64 + b'","group":0,"missing":0}',
        b'{"type":"want_metadata","id":"w","name":"keys/root.pem","part":0}',
        b'{"type":"want_metadata","id":"w","name":"' + b"a" * 200_000 + b'","part":0}',
    ],
)
def test_ill_formed_wants_never_reach_delivery(scene: Scene, payload: bytes) -> None:
    router = Router(scene.bench.parts)
    router.register(Channel.WANT, want_handler(scene.delivery))
    assert not router.route("covey/v1/d/pi-1/up/want", payload)
    scene.run(steps=2)
    assert scene.broker.sent == []
    assert sum(router.refused.values()) == 1


def test_a_good_want_through_the_router_is_answered(scene: Scene) -> None:
    scene.bench.add_devices("pi-1")
    router = Router(scene.bench.parts)
    router.register(Channel.WANT, want_handler(scene.delivery))
    payload = b'{"type":"want_chunks","digest":"' + scene.digest.encode() + b'","group":1,"missing":1}'
    assert router.route("covey/v1/d/pi-1/up/want", payload)
    scene.run(steps=3)
    assert scene.chunks() == [GROUP_CHUNKS]


def test_the_thread_survives_a_fault_and_stops_when_told(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    broken: list[int] = []

    class BrokenBroker(MemoryBroker):
        def publish(self, topic: str, payload: bytes, qos: int) -> Sent:
            broken.append(qos)
            scene.delivery.stop()
            raise OSError("the socket is gone")

    scene.delivery = make_delivery(scene.bench, BrokenBroker(), scene.clock, window_s=0.0)
    scene.want("pi-1")
    scene.delivery.run()
    assert broken == [1]
    assert "delivery failed" in caplog.text
