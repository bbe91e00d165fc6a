"""An artifact gets onto the disk whole or not at all, whatever comes over the wire, and a second try asks only for what is missing."""

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import bsdiff4
import msgspec
import pytest
from tests.fakes.chunk_server import ChunkServer
from tests.fakes.tiny_releases import make_variant

from covey_agent.core.jobs import FetchProgress
from covey_agent.workers.errors import NetworkError, StorageError, UntrustedError
from covey_agent.workers.fetch import Fetch, FetchPlace
from covey_agent.workers.offers import DeltaOffers
from covey_agent.workers.pace import ChunkWindow
from covey_agent.workers.partial import PartialArtifact
from covey_contract.codec import digest_of, encode
from covey_contract.ids import Digest
from covey_contract.limits import CHUNK_BYTES, GROUP_CHUNKS
from covey_contract.messages import Chunk, DeltaOffer, DeltaState, MetadataPart
from covey_contract.offers import delta_name
from covey_contract.release import Variant

DATA = random.Random(1).randbytes(CHUNK_BYTES * (GROUP_CHUNKS + 2) + 100)  # two groups; the last chunk is short
VARIANT = make_variant(DATA)
Relay = Callable[[list[Chunk]], list[Chunk]]


def fetch(
    folder: Path, server: ChunkServer, *, told: list[FetchProgress] | None = None, active: Path | None = None, reserve: int = 0
) -> Fetch:
    tell = told.append if told is not None else lambda _: None
    return Fetch(server, FetchPlace(folder, active, reserve), tell=tell, clock=lambda: 0.0, window=ChunkWindow(16))


def change(chunk: Chunk, data: bytes) -> Chunk:
    return msgspec.structs.replace(chunk, data=data)


def once(spoil: Relay) -> Relay:
    """Spoil the first answer only."""
    state = {"spoiled": False}

    def relay(chunks: list[Chunk]) -> list[Chunk]:
        if state["spoiled"]:
            return chunks
        state["spoiled"] = True
        return spoil(chunks)

    return relay


def test_an_artifact_arrives(tmp_path: Path) -> None:
    server = ChunkServer(DATA)
    assert fetch(tmp_path, server).obtain(VARIANT).read_bytes() == DATA
    assert server.asked == [(0, 0xFFFF), (1, 0b111)]


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda chunks: chunks[::-1], id="reordered"),
        pytest.param(lambda chunks: chunks + chunks, id="duplicate"),
        pytest.param(lambda chunks: [], id="lost"),
        pytest.param(lambda chunks: [change(chunk, chunk.data[:-1]) for chunk in chunks], id="truncated"),
        pytest.param(lambda chunks: [change(chunk, chunk.data + b"!") for chunk in chunks], id="too long"),
        pytest.param(lambda chunks: [change(chunk, b"") for chunk in chunks], id="empty"),
        pytest.param(lambda chunks: [change(chunk, b"\x00" * len(chunk.data)) for chunk in chunks], id="corrupt"),
        pytest.param(lambda chunks: [change(chunk, chunks[0].data) for chunk in chunks], id="another chunk's data"),
        pytest.param(lambda chunks: [msgspec.structs.replace(chunk, index=chunk.index + 10**9) for chunk in chunks], id="beyond the end"),
    ],
)
def test_what_is_wrong_is_dropped_and_asked_for_again(tmp_path: Path, spoil: Relay) -> None:
    server = ChunkServer(DATA, relay=once(spoil))
    assert fetch(tmp_path, server).obtain(VARIANT).read_bytes() == DATA


def test_a_relay_that_sends_only_rubbish_is_left(tmp_path: Path) -> None:
    server = ChunkServer(DATA, relay=lambda chunks: [change(chunk, b"rubbish") for chunk in chunks], askings=10**9)
    with pytest.raises(NetworkError, match="signed manifest"):
        fetch(tmp_path, server).obtain(VARIANT)


def test_a_second_try_asks_for_exactly_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(NetworkError):
        fetch(tmp_path, ChunkServer(DATA, relay=once(lambda chunks: chunks[:5]), askings=1)).obtain(VARIANT)
    server = ChunkServer(DATA)
    told: list[FetchProgress] = []
    assert fetch(tmp_path, server, told=told).obtain(VARIANT).read_bytes() == DATA
    assert server.asked == [(0, 0xFFE0), (1, 0b111)]
    assert (told[0].chunks_done, told[-1].chunks_done, told[-1].chunks_total) == (5, 19, 19)
    assert told[-1].bytes_received == len(DATA) - 5 * CHUNK_BYTES


def test_a_mark_without_its_data_is_not_believed(tmp_path: Path) -> None:
    """After a power cut the bitmap may have reached the disk and the data not."""
    fetch(tmp_path, ChunkServer(DATA)).obtain(VARIANT)
    with (tmp_path / VARIANT.artifact / "data").open("r+b") as file:
        file.seek(3 * CHUNK_BYTES)
        file.write(b"\x00" * 4096)
    server = ChunkServer(DATA)
    assert fetch(tmp_path, server).obtain(VARIANT).read_bytes() == DATA
    assert server.asked == [(0, 0b1000)]


@pytest.mark.parametrize("bitmap", [b"", b"\x01" * 1000, b"\xff\x00garbage"])
def test_a_garbled_bitmap_harms_nothing(tmp_path: Path, bitmap: bytes) -> None:
    (tmp_path / VARIANT.artifact).mkdir()
    (tmp_path / VARIANT.artifact / "bitmap").write_bytes(bitmap)
    assert fetch(tmp_path, ChunkServer(DATA)).obtain(VARIANT).read_bytes() == DATA


def test_right_chunks_of_a_wrong_whole_are_refused(tmp_path: Path) -> None:
    liar = msgspec.structs.replace(VARIANT, artifact="0" * 64)
    with pytest.raises(UntrustedError, match="contradicts"):
        fetch(tmp_path, ChunkServer(DATA)).obtain(liar)
    assert not (tmp_path / liar.artifact).exists()


@pytest.mark.parametrize("length", [len(DATA) + CHUNK_BYTES, len(DATA) - CHUNK_BYTES])
def test_a_length_that_does_not_fit_the_chunk_list_is_refused(tmp_path: Path, length: int) -> None:
    with pytest.raises(UntrustedError, match="chunks"):
        fetch(tmp_path, ChunkServer(DATA)).obtain(msgspec.structs.replace(VARIANT, length=length))


def test_no_room_is_told_before_anything_is_asked_and_may_be_tried_again(tmp_path: Path) -> None:
    server = ChunkServer(DATA)
    with pytest.raises(StorageError, match="no room"):
        fetch(tmp_path, server, reserve=1 << 60).obtain(VARIANT)
    assert server.asked == []


def test_what_already_serves_is_copied_and_not_fetched(tmp_path: Path) -> None:
    active = tmp_path / "model.onnx"
    active.write_bytes(DATA)
    server = ChunkServer(DATA)
    path = fetch(tmp_path / "fetch", server, active=active).obtain(VARIANT)
    assert path.read_bytes() == DATA
    assert server.asked == []
    assert path.stat().st_ino != active.stat().st_ino  # one bad block must not spoil both slots


def test_a_serving_file_that_rotted_is_not_copied(tmp_path: Path) -> None:
    active = tmp_path / "model.onnx"
    active.write_bytes(DATA[:-1] + b"?")
    assert fetch(tmp_path / "fetch", ChunkServer(DATA), active=active).obtain(VARIANT).read_bytes() == DATA


def test_leftovers_of_other_artifacts_make_room(tmp_path: Path) -> None:
    (tmp_path / ("f" * 64)).mkdir()
    (tmp_path / ("f" * 64) / "data").write_bytes(b"old")
    fetch(tmp_path, ChunkServer(DATA)).obtain(VARIANT)
    assert [path.name for path in tmp_path.iterdir()] == [VARIANT.artifact]


def test_a_digest_is_never_a_path(tmp_path: Path) -> None:
    evil: Variant = msgspec.structs.replace(VARIANT, artifact="../../etc")
    with pytest.raises(Exception, match="digest"):
        PartialArtifact(tmp_path, evil.artifact, length=evil.length, chunks=evil.chunks)


OLD = DATA[:-100] + b"old" * 30
PATCH = bsdiff4.diff(OLD, DATA)


class DeltaServer(ChunkServer):
    """Sends the delta's chunks under its digest and the artifact's under its own; what it offers can be changed."""

    def __init__(self, patch: bytes = PATCH, **changes: object) -> None:
        super().__init__(DATA)
        self.patch = patch
        self.offer = DeltaOffer(
            state=DeltaState.READY,
            digest=digest_of(patch),
            length=len(patch),
            chunks=[digest_of(patch[start : start + CHUNK_BYTES]) for start in range(0, len(patch), CHUNK_BYTES)],
        )
        self.offer = msgspec.structs.replace(self.offer, **changes)
        self.asked_for_offers = 0

    def chunks(self, digest: Digest, *, group: int, missing: Callable[[], int]) -> Iterator[Chunk]:
        if digest == self.offer.digest:
            wanted = missing()
            yield from (Chunk(index=i, data=self.patch[i * CHUNK_BYTES : (i + 1) * CHUNK_BYTES]) for i in range(16) if wanted >> i & 1)
        else:
            yield from super().chunks(digest, group=group, missing=missing)

    def fetch_part(self, name: str, part: int) -> MetadataPart:
        self.asked_for_offers += 1
        assert name == delta_name(digest_of(OLD), VARIANT.artifact)
        return MetadataPart(id="x", part=part, parts=1, data=encode(self.offer))


def fetch_over(folder: Path, server: DeltaServer) -> Fetch:
    """A fetch on a device that serves OLD."""
    active = folder / "active"
    active.write_bytes(OLD)
    offers = DeltaOffers(server.fetch_part, pause=lambda _: None, clock=iter(range(0, 10_000, 10)).__next__)
    return Fetch(
        server, FetchPlace(folder / "fetch", active, 0), tell=lambda _: None, clock=lambda: 0.0, offers=offers, window=ChunkWindow(16)
    )


def test_a_delta_against_what_serves_makes_the_artifact(tmp_path: Path) -> None:
    server = DeltaServer()
    one = fetch_over(tmp_path, server)
    assert one.obtain(VARIANT).read_bytes() == DATA
    assert server.asked == [], "no chunk of the whole artifact was asked for"
    assert one.how == f"delta of {len(PATCH)} bytes instead of {len(DATA)}"
    assert len(PATCH) < len(DATA) / 8


GARBLED = PATCH[:50] + bytes(20) + PATCH[70:]
FOREIGN = bsdiff4.diff(OLD, DATA[:-1] + b"?")


@pytest.mark.parametrize(
    ("server", "why"),
    [
        (DeltaServer(GARBLED), "cannot be unpacked"),
        (DeltaServer(FOREIGN), "not what the signed manifest says"),
        (DeltaServer(b"BSDIFF40" + bytes(100)), "makes 0 bytes"),
        (DeltaServer(digest="0" * 64), "the whole is not"),
    ],
    ids=["garbled", "of another file", "no patch", "another digest"],
)
def test_a_delta_that_is_wrong_costs_no_more_than_itself(tmp_path: Path, server: DeltaServer, why: str) -> None:
    one = fetch_over(tmp_path, server)
    assert one.obtain(VARIANT).read_bytes() == DATA
    assert server.asked == [(0, 0xFFFF), (1, 0b111)]
    assert why in one.how


@pytest.mark.parametrize(
    "server",
    [
        DeltaServer(state=DeltaState.NONE),
        DeltaServer(state=DeltaState.MAKING),
        DeltaServer(length=len(DATA)),
        DeltaServer(length=0),
        DeltaServer(chunks=["0" * 64] * 3),
    ],
    ids=["none", "never ready", "as long as the whole", "empty", "chunks do not fit"],
)
def test_an_offer_that_is_none_or_makes_no_sense_is_let_pass(tmp_path: Path, server: DeltaServer) -> None:
    one = fetch_over(tmp_path, server)
    assert one.obtain(VARIANT).read_bytes() == DATA
    assert one.how == "whole"


def test_a_delta_that_failed_is_not_tried_again_for_this_artifact(tmp_path: Path) -> None:
    server = DeltaServer(GARBLED)
    one = fetch_over(tmp_path, server)
    one.obtain(VARIANT)
    again = fetch_over(tmp_path, server)
    assert again.obtain(VARIANT).read_bytes() == DATA
    assert server.asked_for_offers == 1


def test_a_patched_artifact_is_not_made_twice(tmp_path: Path) -> None:
    server = DeltaServer()
    fetch_over(tmp_path, server).obtain(VARIANT)
    assert fetch_over(tmp_path, server).obtain(VARIANT).read_bytes() == DATA
    assert server.asked_for_offers == 1


def test_a_download_that_has_begun_goes_on_whole(tmp_path: Path) -> None:
    server = DeltaServer()
    with PartialArtifact(tmp_path / "fetch", VARIANT.artifact, length=VARIANT.length, chunks=VARIANT.chunks) as partial:
        partial.store(server.chunk(0))
    assert fetch_over(tmp_path, server).obtain(VARIANT).read_bytes() == DATA
    assert server.asked_for_offers == 0
    assert server.asked[0] == (0, 0xFFFE)
