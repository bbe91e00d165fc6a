"""The real deploy and verify children against the real broker: by mutual TLS, with TUF, through kills and a bad relay."""

import copy
import random
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import numpy as np
import pytest
from securesystemslib.signer import CryptoSigner
from tests.fakes.children import Child
from tests.fakes.nats_broker import RunningBroker, running_broker
from tests.fakes.tiny_releases import make_release, make_variant
from tests.fakes.tuf_repository import Director, TufRepository
from tests.fakes.wants_server import WantsServer

from covey_agent.core.jobs import (
    BrokerAddress,
    ChildEvent,
    DeployFailed,
    DeployJob,
    DeployRefused,
    FetchProgress,
    Rejected,
    Staged,
    VariantChosen,
    Verified,
    VerifyJob,
)
from covey_agent.workers.lines import EXIT_ABANDONED
from covey_agent.workers.slotmodel import read_slot
from covey_contract.codec import digest_of, encode
from covey_contract.limits import CHUNK_BYTES, METADATA_PART_BYTES
from covey_contract.messages import Capabilities, Chunk, Desired, ReleaseRef, StopRun, WantChunks, WantMetadata

pytestmark = pytest.mark.broker

DEVICE = "pi-1"
DATA = random.Random(2).randbytes(CHUNK_BYTES * 40 + 1)  # 41 chunks in three groups
RELEASE = make_release([make_variant(DATA)], inputs=np.zeros((1, 2), np.float32), outputs=np.zeros((1, 2), np.float32))
MANIFEST = encode(RELEASE)
REF = ReleaseRef(model="tiny", version=1, manifest=digest_of(MANIFEST))
ABLE = Capabilities(arch="x86_64", memory=1 << 30, runtimes={"onnxruntime": "1.31.1"})


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningBroker]:
    with running_broker(tmp_path_factory.mktemp("broker"), devices=[DEVICE, "pi-2"]) as made:
        yield made


class Fleet:
    """One device, its director and its TUF repository, on a real broker."""

    def __init__(self, broker: RunningBroker, folder: Path, stack: ExitStack) -> None:
        self.director = Director()
        self.repository = TufRepository()
        self.repository.add_target("director.json", self.director.public_document())
        self.repository.add_target("releases/tiny/1.json", MANIFEST)
        self.repository.publish()
        self.state_dir = self.repository.enrol(folder / "state")
        self.server = stack.enter_context(WantsServer(broker, self.repository, {digest_of(DATA): DATA}))
        files = broker.identity(DEVICE)
        self.address = BrokerAddress("127.0.0.1", broker.port, str(files.ca), str(files.certificate), str(files.key), DEVICE)
        self.slot_dir = self.state_dir / "slots" / "B"

    def job(self, **changes: object) -> DeployJob:
        order = Desired(device=DEVICE, generation=7, issued_at=1, release=REF)
        job = DeployJob(
            state_dir=str(self.state_dir),
            broker=self.address,
            order=encode(self.director.sign(order)),
            slot_dir=str(self.slot_dir),
            active_artifact="",
            capabilities=ABLE,
            quarantine=[],
            reserve_bytes=0,
        )
        return msgspec.structs.replace(job, **changes)

    def deploy(self, **changes: object) -> list[ChildEvent]:
        with Child("deploy", self.job(**changes)) as child:
            events = child.rest(timeout_s=60)
            assert child.process.returncode == 0, child.log
            return events

    def refusal(self, **changes: object) -> DeployRefused:
        last = self.deploy(**changes)[-1]
        assert isinstance(last, DeployRefused)
        assert not self.slot_dir.exists()
        return last


@pytest.fixture
def fleet(broker: RunningBroker, tmp_path: Path) -> Iterator[Fleet]:
    with ExitStack() as stack:
        yield Fleet(broker, tmp_path, stack)


def test_an_order_is_carried_out(fleet: Fleet) -> None:
    events = fleet.deploy()
    artifact = digest_of(DATA)
    assert events[0] == VariantChosen("onnx-float32", artifact, "onnx-float32: the only one that fits", REF.manifest)
    assert events[-2] == FetchProgress(chunks_done=41, chunks_total=41, bytes_received=len(DATA))
    assert events[-1] == Staged(str(fleet.slot_dir), "onnx-float32", artifact, REF.manifest, "whole, by MQTT")
    assert read_slot(fleet.slot_dir).model.read_bytes() == DATA
    assert sorted(fleet.server.sent) == list(range(41))
    assert list((fleet.state_dir / "fetch").iterdir()) == []

    fleet.server.sent.clear()
    again = fleet.deploy()  # the agent was killed before it noted the result
    assert isinstance(again[-1], Staged)
    assert fleet.server.sent == []


def chunks_on_disk(fleet: Fleet) -> int:
    bitmap = fleet.state_dir / "fetch" / digest_of(DATA) / "bitmap"
    return bitmap.read_bytes().count(1) if bitmap.exists() else 0


def test_a_kill_anywhere_loses_nothing_and_asks_for_exactly_the_rest(fleet: Fleet) -> None:
    fleet.server.chunk_pause_s = 0.005
    for target in (5, 20, 35):
        # The rest is withheld, so that the child cannot finish before it is killed, however slow this machine is.
        fleet.server.spoil = lambda chunk, end=target + 3: chunk if chunk.index < end else None  # type: ignore[misc]  # mypy cannot type a default
        with Child("deploy", fleet.job()) as child:
            deadline = time.monotonic() + 20
            while chunks_on_disk(fleet) < target:
                assert time.monotonic() < deadline, child.log
                time.sleep(0.001)
            child.kill()
        time.sleep(0.1)  # let the server finish talking to the dead
    there = chunks_on_disk(fleet)
    fleet.server.spoil = lambda chunk: chunk
    fleet.server.wants.clear()
    events = fleet.deploy()
    assert isinstance(events[-1], Staged)
    asked = [want for want in fleet.server.wants if isinstance(want, WantChunks)]
    assert sum(want.missing.bit_count() for want in asked) == 41 - there
    last = events[-2]
    assert isinstance(last, FetchProgress)
    assert last.bytes_received <= len(DATA) - (there - 1) * CHUNK_BYTES
    assert read_slot(fleet.slot_dir).model.read_bytes() == DATA


def test_a_relay_that_loses_and_spoils_chunks_is_survived(fleet: Fleet) -> None:
    seen: list[int] = []

    def spoil(chunk: Chunk) -> Chunk | None:
        seen.append(chunk.index)
        if chunk.index >= 32 or chunk.index % 3 == 0 or seen.count(chunk.index) > 1:  # two groups suffer, two thirds of them, once
            return chunk
        return None if chunk.index % 3 == 1 else msgspec.structs.replace(chunk, data=chunk.data[:-1] + b"\x00")

    fleet.server.spoil = spoil
    assert isinstance(fleet.deploy()[-1], Staged)
    assert read_slot(fleet.slot_dir).model.read_bytes() == DATA


def test_the_end_of_standard_input_stops_a_fetch(fleet: Fleet) -> None:
    fleet.server.chunk_pause_s = 0.05
    with Child("deploy", fleet.job()) as child:
        child.wait_for(VariantChosen)
        assert child.process.stdin
        child.process.stdin.close()
        assert child.process.wait(10) == EXIT_ABANDONED


def test_what_serves_already_is_not_fetched(fleet: Fleet, tmp_path: Path) -> None:
    active = tmp_path / "model.onnx"
    active.write_bytes(DATA)
    assert isinstance(fleet.deploy(active_artifact=str(active))[-1], Staged)
    assert fleet.server.sent == []


def test_a_forged_order_is_refused(fleet: Fleet) -> None:
    order = Desired(device=DEVICE, generation=7, issued_at=1, release=REF)
    assert "does not name" in fleet.refusal(order=encode(Director().sign(order))).reason


@pytest.mark.parametrize(
    ("order", "reason"),
    [
        (Desired(device="pi-2", generation=7, issued_at=1, release=REF), "for device pi-2"),
        (Desired(device=DEVICE, generation=6, issued_at=1, release=REF), "generation 6"),
        (Desired(device=DEVICE, generation=7, issued_at=1, release=ReleaseRef("tiny", 2, REF.manifest)), "not among"),
        (Desired(device=DEVICE, generation=7, issued_at=1, release=ReleaseRef("tiny", 1, "0" * 64)), "the order names"),
        (Desired(device=DEVICE, generation=7, issued_at=1), "expected an order to run a release"),
        (StopRun(id="c", device=DEVICE, expires_at=1 << 47, run="r"), "expected an order to run a release"),
    ],
)
def test_an_order_that_must_not_be_carried_out_is_refused(fleet: Fleet, order: Desired | StopRun, reason: str) -> None:
    assert reason in fleet.refusal(order=encode(fleet.director.sign(order)), min_generation=7).reason


def test_bytes_that_are_no_order_are_refused(fleet: Fleet) -> None:
    assert "expected Signed" in fleet.refusal(order=b"\x00nonsense").reason


def test_what_is_quarantined_is_refused_and_named(fleet: Fleet) -> None:
    for digest in (digest_of(DATA), REF.manifest):
        refusal = fleet.refusal(quarantine=["f" * 64, digest])
        assert "quarantine" in refusal.reason
        assert refusal.artifact == digest


def test_no_room_may_be_tried_again_and_no_runtime_is_a_refusal(fleet: Fleet) -> None:
    failed = fleet.deploy(reserve_bytes=1 << 46)[-1]
    assert isinstance(failed, DeployFailed)
    assert "no room" in failed.reason
    assert fleet.server.sent == []
    assert "no variant fits" in fleet.refusal(capabilities=Capabilities()).reason


def test_missing_certificates_may_be_tried_again(fleet: Fleet) -> None:
    address = msgspec.structs.replace(fleet.address, cert_file=str(fleet.state_dir / "missing.crt"))
    (last,) = fleet.deploy(broker=address)
    assert isinstance(last, DeployFailed)
    assert "certificates" in last.reason


def test_orders_are_verified_for_the_agent(fleet: Fleet) -> None:
    stop = StopRun(id="c", device=DEVICE, expires_at=1 << 47, run="r")
    verdicts = []
    for director in (fleet.director, Director()):
        with Child("verify", VerifyJob(str(fleet.state_dir), fleet.address, encode(director.sign(stop)))) as child:
            verdicts.extend(child.rest())
    assert verdicts[0] == Verified()
    assert isinstance(verdicts[1], Rejected)


# -- TUF over the broker: attacks and recoveries, judged by the real verify child ---------------------------------------


def verdict(fleet: Fleet) -> ChildEvent:
    """What the child makes of a good order while the repository is as it is now."""
    stop = StopRun(id="c", device=DEVICE, expires_at=1 << 47, run="r")
    with Child("verify", VerifyJob(str(fleet.state_dir), fleet.address, encode(fleet.director.sign(stop)))) as child:
        (event,) = child.rest(timeout_s=60)
        return event


def freeze(repository: TufRepository) -> None:
    repository.timestamp.expires = (datetime.now(UTC) - timedelta(hours=1)).replace(microsecond=0)
    repository.publish_timestamp()


def roll_back(repository: TufRepository) -> None:
    repository.timestamp.version -= 2
    repository.publish_timestamp()


def fast_forward_back(repository: TufRepository) -> None:
    repository.snapshot.version -= 2
    repository.publish()


def mix_and_match(repository: TufRepository) -> None:
    before = repository.files[f"metadata/{repository.targets.version}.targets.json"]
    repository.publish()
    repository.files[f"metadata/{repository.targets.version}.targets.json"] = before


def forge_root(repository: TufRepository) -> None:
    repository.publish_root([CryptoSigner.generate_ed25519()], without_own=True)


def never_end(repository: TufRepository) -> None:
    repository.files["metadata/timestamp.json"] = b" " * (METADATA_PART_BYTES * 40)


def cut_off(repository: TufRepository) -> None:
    repository.files["metadata/timestamp.json"] = repository.files["metadata/timestamp.json"][:-20]


def steal_online_key(repository: TufRepository) -> None:
    repository.forge("snapshot")
    repository.publish()


@pytest.mark.parametrize(
    ("attack", "reason"),
    [
        (freeze, "expired"),
        (roll_back, "timestamp version"),
        (fast_forward_back, "snapshot version"),
        (mix_and_match, "Expected targets"),
        (forge_root, "root was signed by 0/1"),
        (never_end, "exceeding the maximum allowed length"),
        (cut_off, "deserialize"),
        (steal_online_key, "snapshot was signed by 0/1"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_an_attack_on_the_metadata_is_refused_and_passes(fleet: Fleet, attack: Callable[[TufRepository], None], reason: str) -> None:
    for _ in range(3):
        fleet.repository.publish()
    assert verdict(fleet) == Verified()
    honest = copy.deepcopy(fleet.repository)
    attack(fleet.repository)
    refused = verdict(fleet)
    assert isinstance(refused, Rejected)
    assert reason in refused.reason
    fleet.server.repository = honest
    for _ in range(3):  # a thief of the timestamp key may have been believed in a number: the honest server goes on above it
        honest.publish()
    assert verdict(fleet) == Verified()


def test_two_hundred_roots_by_two_of_three_holders_are_followed_over_the_broker(fleet: Fleet) -> None:
    assert verdict(fleet) == Verified()
    fleet.repository.share_root(3, 2)
    for step in range(199):
        fleet.repository.rotate_key(("timestamp", "snapshot", "targets")[step % 3])
    fleet.repository.publish()
    assert isinstance(fleet.deploy()[-1], Staged)
    names = {want.name for want in fleet.server.wants if isinstance(want, WantMetadata)}
    assert {f"metadata/{version}.root.json" for version in range(2, 202)} <= names


def test_a_thief_who_counted_versions_up_is_got_rid_of_over_the_broker(fleet: Fleet) -> None:
    repository = fleet.repository
    repository.timestamp.version = repository.snapshot.version = repository.targets.version = 2**31
    repository.publish()
    assert verdict(fleet) == Verified()
    repository.timestamp.version = repository.snapshot.version = repository.targets.version = 1
    repository.publish()
    assert isinstance(verdict(fleet), Rejected)
    for role in ("timestamp", "snapshot", "targets"):
        repository.rotate_key(role)
    repository.publish()
    assert verdict(fleet) == Verified()
