"""The content-addressed store in a folder: `blobs/ab/cdef...`, one file a digest.

A blob is written aside and renamed, so a name that exists is complete. What the disk did to it afterwards is found when it is
read: `read` checks the digest and refuses a blob that has rotted rather than hand it to a device.
"""

import hashlib
import os
import secrets
from pathlib import Path

from covey_contract.codec import digest_of
from covey_contract.ids import parse_digest
from covey_server.errors import NotFoundError, UnavailableError
from covey_server.releases.files import sync_folder, write_atomic

_COPY_BYTES = 1024 * 1024


class CorruptBlobError(UnavailableError):
    """A blob's bytes are no longer what its name says."""

    def __init__(self, digest: str, found: str) -> None:
        super().__init__(f"blob {digest} holds bytes with the sha256 {found}: the disk has changed it; restore it from a backup")
        self.digest = digest
        self.found = found


class FolderBlobStore:
    """`parts.BlobStore` in a local folder."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def put(self, data: bytes) -> str:
        """Store bytes, return their digest. What is there already and sound is left alone."""
        digest = digest_of(data)
        if not self._is_sound(digest, len(data)):
            write_atomic(self._place(digest), data)
        return digest

    def put_file(self, path: Path) -> tuple[str, int]:
        """Store a file without holding it in memory, return its digest and length."""
        self._root.mkdir(parents=True, exist_ok=True)
        aside = self._root / f".{secrets.token_hex(8)}.part"
        sha256 = hashlib.sha256()
        length = 0
        try:
            with path.open("rb") as source, aside.open("wb") as target:
                while piece := source.read(_COPY_BYTES):
                    sha256.update(piece)
                    length += len(piece)
                    target.write(piece)
            digest = sha256.hexdigest()
            if not self._is_sound(digest, length):
                self._adopt(aside, digest)
            return digest, length
        finally:
            aside.unlink(missing_ok=True)

    def exists(self, digest: str) -> bool:
        """Whether the store holds it."""
        return self._place(digest).is_file()

    def read(self, digest: str) -> bytes:
        """All of it, checked. Raises NotFoundError, or CorruptBlobError if its bytes have changed."""
        data = self.path(digest).read_bytes()
        found = digest_of(data)
        if found != digest:
            raise CorruptBlobError(digest, found)
        return data

    def read_range(self, digest: str, offset: int, length: int) -> bytes:
        """Part of it; shorter at the end. Not checked as a whole: whoever reads parts checks each part's own digest."""
        with self.path(digest).open("rb") as file:
            file.seek(offset)
            return file.read(length)

    def delete(self, digest: str) -> None:
        """Forget it; one that is not there is no error."""
        self._place(digest).unlink(missing_ok=True)

    def path(self, digest: str) -> Path:
        """A local path that holds it, for reading only. Raises NotFoundError."""
        place = self._place(digest)
        if not place.is_file():
            raise NotFoundError("blob", digest)
        return place

    def _place(self, digest: str) -> Path:
        checked = parse_digest(digest)
        return self._root / checked[:2] / checked[2:]

    def _is_sound(self, digest: str, length: int) -> bool:
        """A file of the right length is taken for sound only after its digest was checked: a put repairs a rotten blob."""
        place = self._place(digest)
        if not place.is_file() or place.stat().st_size != length:
            return False
        with place.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == digest

    def _adopt(self, aside: Path, digest: str) -> None:
        place = self._place(digest)
        place.parent.mkdir(parents=True, exist_ok=True)
        with aside.open("rb+") as file:
            os.fsync(file.fileno())
        aside.replace(place)
        sync_folder(place.parent)
