"""The folder blob store: what it says is there is whole, and what rotted is refused."""

from pathlib import Path

import pytest

from covey_contract.codec import digest_of
from covey_contract.errors import InvalidIdError
from covey_server.errors import NotFoundError
from covey_server.releases.store import CorruptBlobError, FolderBlobStore


@pytest.fixture
def store(tmp_path: Path) -> FolderBlobStore:
    return FolderBlobStore(tmp_path / "blobs")


def blob_file(tmp_path: Path, digest: str) -> Path:
    return tmp_path / "blobs" / digest[:2] / digest[2:]


def test_put_names_bytes_by_their_sha256_and_read_returns_them(store: FolderBlobStore) -> None:
    digest = store.put(b"model")
    assert digest == digest_of(b"model")
    assert store.read(digest) == b"model"
    assert store.exists(digest)
    assert store.path(digest).read_bytes() == b"model"


def test_put_file_stores_the_same_blob_as_put(store: FolderBlobStore, tmp_path: Path) -> None:
    source = tmp_path / "model.onnx"
    source.write_bytes(b"x" * 3_000_000)
    digest, length = store.put_file(source)
    assert (digest, length) == (digest_of(b"x" * 3_000_000), 3_000_000)
    assert store.put(b"x" * 3_000_000) == digest
    assert source.exists()


def test_no_partial_file_stays_behind(store: FolderBlobStore, tmp_path: Path) -> None:
    source = tmp_path / "model.onnx"
    source.write_bytes(b"model")
    store.put_file(source)
    store.put(b"other")
    assert not [file for file in (tmp_path / "blobs").rglob("*") if file.name.endswith(".part")]


@pytest.mark.parametrize(("offset", "length", "expected"), [(0, 2, b"ab"), (2, 10, b"cdef"), (6, 5, b""), (100, 5, b"")])
def test_read_range_is_shorter_at_the_end(store: FolderBlobStore, offset: int, length: int, expected: bytes) -> None:
    assert store.read_range(store.put(b"abcdef"), offset, length) == expected


@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: b"X" + data[1:], lambda data: b""])
def test_a_rotten_blob_is_refused_and_a_new_put_repairs_it(store: FolderBlobStore, tmp_path: Path, damage: object) -> None:
    assert callable(damage)
    digest = store.put(b"model")
    blob_file(tmp_path, digest).write_bytes(damage(b"model"))
    with pytest.raises(CorruptBlobError, match="disk has changed it"):
        store.read(digest)
    store.put(b"model")
    assert store.read(digest) == b"model"


def test_put_file_repairs_a_rotten_blob_too(store: FolderBlobStore, tmp_path: Path) -> None:
    source = tmp_path / "model.onnx"
    source.write_bytes(b"model")
    digest, _ = store.put_file(source)
    blob_file(tmp_path, digest).write_bytes(b"MODEL")
    store.put_file(source)
    assert store.read(digest) == b"model"


def test_an_unknown_digest_is_not_found(store: FolderBlobStore) -> None:
    missing = digest_of(b"never stored")
    assert not store.exists(missing)
    for read in (store.read, store.path, lambda digest: store.read_range(digest, 0, 1)):
        with pytest.raises(NotFoundError):
            read(missing)


@pytest.mark.parametrize("name", ["../../etc/passwd", "", "ab", "A" * 64, "/" * 64, "0" * 63 + "\n"])
def test_a_name_that_is_no_digest_never_reaches_the_disk(store: FolderBlobStore, name: str) -> None:
    with pytest.raises(InvalidIdError):
        store.exists(name)
