"""Deltas on the server: which are made, what they cost, and that a device makes the artifact of one."""

import io
import random
import time
from pathlib import Path

import pytest
from sqlmodel import select
from tests.server.releases.bench import Bench, import_spec, make_bench
from tests.server.releases.test_delivery import MemoryBroker

from covey_agent.workers.bspatch import apply_patch
from covey_contract.codec import decode, digest_of
from covey_contract.ids import DeviceId
from covey_contract.limits import CHUNK_BYTES
from covey_contract.messages import Chunk, DeltaOffer, DeltaState, MetadataPart, WantChunks, WantMetadata
from covey_contract.offers import delta_name
from covey_server.releases.delivery import Delivery, DeliveryLimits
from covey_server.releases.deltas import DeltaDesk, DeltaMaker, delta_length, make_room
from covey_server.releases.imports import import_release, store_file
from covey_server.releases.models import Delta, DeltaRowState
from covey_server.releases.service import id_of, withdraw_release
from covey_server.settings import DeliverySettings

CHANCE = random.Random(5)
OLD = CHANCE.randbytes(300_000)
NEW = bytes((byte + CHANCE.choice((0, 0, 0, 0, 1))) % 256 for byte in OLD)
OTHER = CHANCE.randbytes(300_000)
SETTINGS = DeliverySettings()


def publish(bench: Bench, content: bytes) -> int:
    """A release of one artifact."""
    file = bench.parts.settings.path("artifact.onnx")
    file.write_bytes(content)
    with bench.parts.db.begin() as session:
        release = import_release(
            session,
            import_spec(),
            {"onnx-int8.onnx": store_file(file, bench.parts.blobs)},
            unmeasured=False,
            max_accuracy_drop=0.01,
            blobs=bench.parts.blobs,
            repository=bench.repository,
            now=bench.clock(),
            actor="token:test",
        )
        return id_of(release)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return make_bench(tmp_path)


def work(bench: Bench, maker: DeltaMaker) -> list[Delta]:
    """Until nothing is left to be made."""
    deadline = time.monotonic() + 60
    while True:
        maker.tick()
        with bench.parts.db.read() as session:
            rows = list(session.exec(select(Delta)))
        if not any(row.state is DeltaRowState.MAKING for row in rows):
            return rows
        assert time.monotonic() < deadline
        time.sleep(0.02)


def desk_and_maker(bench: Bench, settings: DeliverySettings = SETTINGS) -> tuple[DeltaDesk, DeltaMaker]:
    """Both ends."""
    return DeltaDesk(bench.parts.db, bench.parts.blobs, settings), DeltaMaker(bench.parts.db, bench.parts.blobs, settings)


def test_a_device_makes_the_artifact_of_a_delta_that_arrived_in_chunks(bench: Bench, tmp_path: Path) -> None:
    publish(bench, OLD)
    publish(bench, NEW)
    desk, maker = desk_and_maker(bench)
    broker = MemoryBroker()
    bounds = DeliveryLimits(window_s=0.0)
    delivery = Delivery(bench.parts.db, bench.parts.blobs, bench.repository, broker, deltas=desk, bounds=bounds)
    name = delta_name(digest_of(OLD), digest_of(NEW))

    def ask() -> DeltaOffer:
        delivery.accept(DeviceId("cam-1"), WantMetadata(id="w", name=name))
        delivery.step(max_wait_s=0)
        return decode(decode(broker.sent[-1].payload, MetadataPart).data, DeltaOffer)

    assert ask().state is DeltaState.MAKING
    work(bench, maker)
    offer = ask()
    assert offer.state is DeltaState.READY
    assert offer.length < len(NEW) / 2
    broker.sent.clear()
    chunks = len(offer.chunks)
    delivery.accept(DeviceId("cam-1"), WantChunks(digest=offer.digest, group=0, missing=(1 << chunks) - 1))
    for _ in range(50 * chunks):
        delivery.step(max_wait_s=0.01)
    patch = bytearray(offer.length)
    for sent in broker.sent:
        chunk = decode(sent.payload, Chunk)
        assert digest_of(chunk.data) == offer.chunks[chunk.index]
        patch[chunk.index * CHUNK_BYTES : chunk.index * CHUNK_BYTES + len(chunk.data)] = chunk.data
    (tmp_path / "old").write_bytes(OLD)
    (tmp_path / "patch").write_bytes(patch)
    new = io.BytesIO()
    apply_patch(tmp_path / "old", tmp_path / "patch", new, length=len(NEW))
    assert new.getvalue() == NEW


def test_a_new_release_gets_its_delta_before_anybody_asks(bench: Bench) -> None:
    publish(bench, OLD)
    _, maker = desk_and_maker(bench)
    maker.tick()
    publish(bench, NEW)
    (row,) = work_after_order(bench, maker)
    assert (row.base, row.target, row.state) == (digest_of(OLD), digest_of(NEW), DeltaRowState.READY)


def work_after_order(bench: Bench, maker: DeltaMaker) -> list[Delta]:
    """One tick to see the release, then until all is made."""
    maker.tick()
    return work(bench, maker)


def test_what_is_not_worth_it_is_tried_once_and_told(bench: Bench) -> None:
    publish(bench, OLD)
    publish(bench, OTHER)
    desk, maker = desk_and_maker(bench)
    name = delta_name(digest_of(OLD), digest_of(OTHER))
    assert desk.offer(name).state is DeltaState.MAKING
    (row,) = work(bench, maker)
    assert row.reason.startswith("not worth it")
    assert desk.offer(name).state is DeltaState.NONE


@pytest.mark.parametrize(
    "name",
    [
        delta_name("a" * 64, "b" * 64),
        delta_name(digest_of(OLD), "b" * 64),
        delta_name("a" * 64, digest_of(NEW)),
        delta_name(digest_of(NEW), digest_of(NEW)),
        "deltas/",
        "deltas/../../keys",
        f"deltas/{digest_of(OLD)}",
    ],
)
def test_made_up_pairs_cost_no_row(bench: Bench, name: str) -> None:
    publish(bench, OLD)
    publish(bench, NEW)
    desk, _ = desk_and_maker(bench)
    assert desk.offer(name).state is DeltaState.NONE
    with bench.parts.db.read() as session:
        assert session.exec(select(Delta)).all() == []


def test_a_delta_to_a_withdrawn_release_is_not_sent(bench: Bench) -> None:
    publish(bench, OLD)
    newest = publish(bench, NEW)
    desk, maker = desk_and_maker(bench)
    desk.offer(delta_name(digest_of(OLD), digest_of(NEW)))
    (row,) = work(bench, maker)
    with bench.parts.db.begin() as session:
        assert delta_length(session, row.digest) == row.length
        withdraw_release(session, newest, repository=bench.repository, actor="user:x")
        assert delta_length(session, row.digest) is None


def test_large_artifacts_get_none(bench: Bench) -> None:
    publish(bench, OLD)
    publish(bench, NEW)
    desk, _ = desk_and_maker(bench, DeliverySettings(delta_max_mb=0.2))
    assert desk.offer(delta_name(digest_of(OLD), digest_of(NEW))).state is DeltaState.NONE


def test_a_child_that_fails_is_tried_twice(bench: Bench) -> None:
    publish(bench, OLD)
    publish(bench, NEW)
    desk, maker = desk_and_maker(bench)
    desk.offer(delta_name(digest_of(OLD), digest_of(NEW)))
    for _ in range(2):
        maker.tick()
        kill_child(maker)
    (row,) = work(bench, maker)
    assert (row.state, row.attempts) == (DeltaRowState.NONE, 3)
    assert "exit code -9" in row.reason


def test_a_child_that_takes_too_long_is_given_up(bench: Bench) -> None:
    publish(bench, OLD)
    publish(bench, NEW)
    desk = desk_and_maker(bench)[0]
    maker = DeltaMaker(bench.parts.db, bench.parts.blobs, SETTINGS, timeout_s=0.0)
    desk.offer(delta_name(digest_of(OLD), digest_of(NEW)))
    (row,) = work(bench, maker)
    assert (row.state, row.attempts) == (DeltaRowState.NONE, 3)
    assert "exit code -9" in row.reason


def kill_child(maker: DeltaMaker) -> None:
    """As the kernel does when memory runs out."""
    assert maker._child is not None
    maker._child.kill()
    maker._child.wait()
    maker.tick()


def test_the_oldest_deltas_make_room(bench: Bench) -> None:
    contents = [OLD, NEW, bytes((byte + CHANCE.choice((0, 0, 0, 0, 1))) % 256 for byte in NEW)]
    for content in contents:
        publish(bench, content)
    desk, maker = desk_and_maker(bench)
    for base, target in ((0, 1), (1, 2)):
        desk.offer(delta_name(digest_of(contents[base]), digest_of(contents[target])))
        work(bench, maker)
    with bench.parts.db.begin() as session:
        rows = {row.target: row for row in session.exec(select(Delta))}
        first, second = rows[digest_of(NEW)], rows[digest_of(contents[2])]
        make_room(session, bench.parts.blobs, needed=1, limit=second.length + 1)
        assert (first.state, second.state) == (DeltaRowState.NONE, DeltaRowState.READY)
        assert (bench.parts.blobs.exists(first.digest), bench.parts.blobs.exists(second.digest)) == (False, True)
