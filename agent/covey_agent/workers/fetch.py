"""Get an artifact onto this device's disk: from the serving slot if it is there, else chunk by chunk from the server."""

import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from covey_agent.core.jobs import FetchProgress
from covey_agent.workers.errors import NetworkError, RefusedError, UntrustedError
from covey_agent.workers.link import ChunkSource
from covey_agent.workers.partial import PartialArtifact, forget_other_artifacts
from covey_agent.workers.stage import copy_verified, file_digest
from covey_contract.release import Variant

logger = logging.getLogger(__name__)
_PROGRESS_EVERY_S = 1.0
_WRONG_PER_CHUNK = 4  # wrong chunks tolerated per chunk of the artifact: a bad relay is not waited for for ever


@dataclass(frozen=True, slots=True)
class FetchPlace:
    """Where fetches are kept, what serves now, and how much disk must stay free."""

    folder: Path
    active_artifact: Path | None
    reserve_bytes: int


class Fetch:
    """One artifact's way onto the disk. Telling the progress is throttled; the first and the last are always told."""

    def __init__(
        self, source: ChunkSource, place: FetchPlace, *, tell: Callable[[FetchProgress], None], clock: Callable[[], float]
    ) -> None:
        self._source = source
        self._place = place
        self._tell = tell
        self._clock = clock
        self._told_at = float("-inf")
        self._received = 0
        self._wrong = 0

    def obtain(self, variant: Variant) -> Path:
        """Return the path of the whole artifact. Raises NetworkError, RefusedError, UntrustedError or OSError."""
        self._place.folder.mkdir(parents=True, exist_ok=True)
        forget_other_artifacts(self._place.folder, keep=variant.artifact)
        self._admit(variant)
        copied = self._copy_active(variant)
        if copied is not None:
            return copied
        with PartialArtifact(self._place.folder, variant.artifact, length=variant.length, chunks=variant.chunks) as partial:
            self._progress(partial, force=True)
            for group in range(partial.groups):
                self._fetch_group(partial, group)
            self._progress(partial, force=True)
            whole, path = partial.is_whole(), partial.path
        if not whole:
            self.discard(variant)
            raise UntrustedError(f"every chunk of {variant.name} is right but the whole is not: its manifest contradicts itself")
        return path

    def discard(self, variant: Variant) -> None:
        """Remove what was fetched: it is staged, or useless."""
        shutil.rmtree(self._place.folder / variant.artifact, ignore_errors=True)

    def _admit(self, variant: Variant) -> None:
        held = _allocated(self._place.folder / variant.artifact / "data")
        needed = max(variant.length - held, 0) + self._place.reserve_bytes
        free = shutil.disk_usage(self._place.folder).free
        if free < needed:
            raise RefusedError(
                f"no room: {variant.name} needs {variant.length} bytes and {self._place.reserve_bytes} must stay free, {free} are free"
            )

    def _copy_active(self, variant: Variant) -> Path | None:
        active = self._place.active_artifact
        if active is None or not active.is_file() or file_digest(active) != variant.artifact:
            return None
        target = self._place.folder / variant.artifact / "data"
        target.parent.mkdir(exist_ok=True)
        # A copy, not a link: the two slots must not share one fate on the disk.
        if not copy_verified(active, target, digest=variant.artifact):
            return None
        logger.info("the artifact already serves here: copied, nothing is fetched")
        return target

    def _fetch_group(self, partial: PartialArtifact, group: int) -> None:
        if not partial.missing(group):
            return
        for chunk in self._source.chunks(partial.digest, group=group, missing=lambda: partial.missing(group)):
            self._received += len(chunk.data)
            if partial.store(chunk):
                self._progress(partial)
            elif partial.lacks(chunk.index):
                self._count_wrong(partial, chunk.index)
        partial.sync()

    def _count_wrong(self, partial: PartialArtifact, index: int) -> None:
        self._wrong += 1
        logger.log(logging.WARNING if self._wrong == 1 else logging.DEBUG, "chunk %d is not what the manifest says: dropped", index)
        if self._wrong > _WRONG_PER_CHUNK * partial.chunks_total:
            raise NetworkError(f"{self._wrong} chunks came that are not what the signed manifest says")

    def _progress(self, partial: PartialArtifact, *, force: bool = False) -> None:
        now = self._clock()
        if force or now - self._told_at >= _PROGRESS_EVERY_S:
            self._told_at = now
            done, total = partial.chunks_done, partial.chunks_total
            self._tell(FetchProgress(chunks_done=done, chunks_total=total, bytes_received=self._received))


def _allocated(path: Path) -> int:
    # Blocks, not length: the file is sparse until its chunks come.
    return path.stat().st_blocks * 512 if path.exists() else 0
