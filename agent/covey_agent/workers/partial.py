"""An artifact that is arriving: its chunks so far, on disk, such that a kill or power cut at any point loses at most one group.

    fetch/<digest>/data      the artifact, with holes
    fetch/<digest>/bitmap    one byte a chunk, 1: written

Order of writing: the chunk, then its mark; at the end of a group both are synced, data first. A kill keeps everything (the kernel
holds what was written). A power cut may keep a mark and lose its chunk, so on opening every marked chunk is hashed again: a mark
is a hint, the digest decides. Resuming therefore asks for exactly what is not there.
"""

import hashlib
import hmac
import os
import shutil
from collections.abc import Collection, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from covey_agent.workers.errors import UntrustedError
from covey_contract.codec import digest_of
from covey_contract.ids import Digest, parse_digest
from covey_contract.limits import CHUNK_BYTES, GROUP_CHUNKS, chunk_count, group_count
from covey_contract.messages import Chunk

_MARK = b"\x01"
_READ_BYTES = 1024 * 1024


class PartialArtifact:
    """The file, and which chunks of it are right."""

    def __init__(self, fetch_dir: Path, digest: str, *, length: int, chunks: Sequence[str]) -> None:
        """`chunks` are the digests from the signed manifest. Opens what is there, or begins. Raises OSError, UntrustedError."""
        if len(chunks) != chunk_count(length):
            raise UntrustedError(f"an artifact of {length} bytes has {chunk_count(length)} chunks, the manifest lists {len(chunks)}")
        self.digest: Digest = parse_digest(digest)
        self.length = length
        self._chunks = chunks
        self._folder = fetch_dir / self.digest
        self._folder.mkdir(parents=True, exist_ok=True)
        self._data = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._bitmap = os.open(self._folder / "bitmap", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.ftruncate(self._data, length)
        self._present = self._recall()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    @property
    def path(self) -> Path:
        """Where the data is."""
        return self._folder / "data"

    @property
    def groups(self) -> int:
        """How many groups the artifact has."""
        return group_count(self.length)

    @property
    def chunks_done(self) -> int:
        """How many chunks are right."""
        return sum(self._present)

    @property
    def chunks_total(self) -> int:
        """How many there are."""
        return len(self._chunks)

    def missing(self, group: int) -> int:
        """Bit i set: chunk i of the group is lacking."""
        first = group * GROUP_CHUNKS
        return sum(1 << i for i, present in enumerate(self._present[first : first + GROUP_CHUNKS]) if not present)

    def lacks(self, index: int) -> bool:
        """Whether the artifact has such a chunk and it is not there yet."""
        return index < len(self._chunks) and not self._present[index]

    def store(self, chunk: Chunk) -> bool:
        """Keep a chunk that is new and right; return whether it was. Length and digest come from the manifest, not from the sender."""
        index = chunk.index
        if not self.lacks(index) or len(chunk.data) != self._size(index):
            return False
        if not hmac.compare_digest(digest_of(chunk.data), self._chunks[index]):
            return False
        _write_at(self._data, chunk.data, index * CHUNK_BYTES)
        _write_at(self._bitmap, _MARK, index)
        self._present[index] = True
        return True

    def sync(self) -> None:
        """Bring everything so far to the disk, the data before the marks."""
        os.fsync(self._data)
        os.fsync(self._bitmap)

    def is_whole(self) -> bool:
        """Whether the file's own digest is right; without it, right chunks prove nothing about their order or number."""
        hasher = hashlib.sha256()
        for offset in range(0, self.length, _READ_BYTES):
            hasher.update(os.pread(self._data, min(_READ_BYTES, self.length - offset), offset))
        return hmac.compare_digest(hasher.hexdigest(), self.digest)

    def close(self) -> None:
        """Close the files; what was stored stays."""
        os.close(self._data)
        os.close(self._bitmap)

    def _recall(self) -> list[bool]:
        marks = os.pread(self._bitmap, len(self._chunks), 0).ljust(len(self._chunks), b"\x00")
        return [mark == _MARK[0] and self._is_right(index) for index, mark in enumerate(marks)]

    def _is_right(self, index: int) -> bool:
        data = os.pread(self._data, self._size(index), index * CHUNK_BYTES)
        return hmac.compare_digest(digest_of(data), self._chunks[index])

    def _size(self, index: int) -> int:
        return min(CHUNK_BYTES, self.length - index * CHUNK_BYTES)


def forget_other_artifacts(fetch_dir: Path, keep: Collection[str]) -> None:
    """Remove what is left of earlier fetches."""
    for folder in fetch_dir.iterdir() if fetch_dir.is_dir() else ():
        if folder.name not in keep:
            shutil.rmtree(folder, ignore_errors=True)


def _write_at(descriptor: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written
