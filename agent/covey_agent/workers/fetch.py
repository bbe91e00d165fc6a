"""Get an artifact onto this device's disk: from the serving slot if it is there, as a delta against it, else chunk by chunk.

A delta is a short cut and never more: whatever is wrong with it, the whole artifact is fetched instead, and the digest in the signed
manifest decides in either case. A delta that failed once is not tried again for this artifact.
"""

import hmac
import logging
import os
import shutil
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from covey_agent.core.jobs import FetchProgress, LinkRules
from covey_agent.workers.bspatch import apply_patch
from covey_agent.workers.errors import NetworkError, StorageError, UntrustedError
from covey_agent.workers.link import ChunkSource
from covey_agent.workers.metered import check_link
from covey_agent.workers.offers import DeltaOffers
from covey_agent.workers.pace import ChunkWindow, Pace
from covey_agent.workers.partial import PartialArtifact, forget_other_artifacts
from covey_agent.workers.stage import copy_verified, file_digest
from covey_contract.messages import DeltaOffer
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
        self,
        source: ChunkSource,
        place: FetchPlace,
        *,
        tell: Callable[[FetchProgress], None],
        clock: Callable[[], float],
        offers: DeltaOffers | None = None,
        rules: LinkRules | None = None,
        window: ChunkWindow | None = None,
        pause: Callable[[float], None] = time.sleep,
        keep: Collection[str] = (),
    ) -> None:
        """`offers`: where deltas are asked for; None: whole artifacts only. `rules`: of the link; None: no cap, nothing metered.

        `keep`: artifacts that lie here and are still needed; all others make room.
        """
        self._source = source
        self._place = place
        self._tell = tell
        self._clock = clock
        self._told_at = float("-inf")
        self._received = 0
        self._wrong = 0
        self._offers = offers
        self._rules = rules or LinkRules()
        self._keep = keep
        self._window = window or ChunkWindow()
        self._pace = Pace(self._rules.max_bytes_per_s, clock=clock, pause=pause)
        self.how = ""  # how the artifact came, in words

    @property
    def received(self) -> int:
        """Bytes of chunks that came, wanted or not."""
        return self._received

    def obtain(self, variant: Variant) -> Path:
        """Return the path of the whole artifact. Raises NetworkError, StorageError (no room), UntrustedError or OSError."""
        self._place.folder.mkdir(parents=True, exist_ok=True)
        forget_other_artifacts(self._place.folder, keep={*self._keep, variant.artifact})
        self._admit(variant)
        path = self._copy_active(variant) or self._patch_active(variant)
        if path is not None:
            return path
        path = self._fetch_whole(self._place.folder, variant.artifact, length=variant.length, chunks=variant.chunks)
        if path is None:
            self.discard(variant)
            raise UntrustedError(f"every chunk of {variant.name} is right but the whole is not: its manifest contradicts itself")
        self.how = self.how or "whole"
        return path

    def _fetch_whole(self, folder: Path, digest: str, *, length: int, chunks: Sequence[str]) -> Path | None:
        """Every chunk of an artifact or a delta; None if the whole is wrong though every chunk is right."""
        with PartialArtifact(folder, digest, length=length, chunks=chunks) as partial:
            check_link(self._rules, length)
            self._progress(partial, force=True)
            for group in range(partial.groups):
                self._fetch_group(partial, group)
            self._progress(partial, force=True)
            return partial.path if partial.is_whole() else None

    def _patch_active(self, variant: Variant) -> Path | None:
        """The artifact made of the serving one and a delta; None if it must be fetched whole."""
        active, folder = self._place.active_artifact, self._place.folder / variant.artifact
        target, given_up = folder / "data", folder / "no-delta"
        if target.is_file() and not (folder / "bitmap").exists() and file_digest(target) == variant.artifact:
            self.how = "delta"
            return target  # patched before a kill
        if active is None or self._offers is None or not active.is_file() or given_up.exists() or (folder / "bitmap").exists():
            return None
        offer = self._offers.find(file_digest(active), variant.artifact, length=variant.length)
        if offer is None or self._free() < variant.length + offer.length + self._place.reserve_bytes:
            return None
        folder.mkdir(exist_ok=True)
        try:
            self._apply(active, offer, target, variant=variant)
        except NetworkError:
            if not self._received:  # a server that offers a delta and does not send it must not be asked for ever
                given_up.touch()
            raise
        except (UntrustedError, OSError) as exc:
            logger.warning("the delta could not be used, so the whole artifact is fetched: %s", exc)
            self.how = f"whole, because the delta could not be used: {exc}"
            given_up.touch()
            shutil.rmtree(folder / "delta", ignore_errors=True)
            return None
        shutil.rmtree(folder / "delta", ignore_errors=True)
        self.how = f"delta of {offer.length} bytes instead of {variant.length}"
        return target

    def _apply(self, active: Path, offer: DeltaOffer, target: Path, *, variant: Variant) -> None:
        delta = self._fetch_whole(target.parent / "delta", offer.digest, length=offer.length, chunks=offer.chunks)
        if delta is None:
            raise UntrustedError("every chunk of the delta is right but the whole is not")
        draft = target.with_name("patched")
        with draft.open("wb") as new:
            apply_patch(active, delta, new, length=variant.length)
            new.flush()
            os.fsync(new.fileno())
        if not hmac.compare_digest(file_digest(draft), variant.artifact):
            draft.unlink()
            raise UntrustedError("what the delta makes is not what the signed manifest says")
        draft.replace(target)

    def discard(self, variant: Variant) -> None:
        """Remove what was fetched: it is staged, or useless."""
        shutil.rmtree(self._place.folder / variant.artifact, ignore_errors=True)

    def _admit(self, variant: Variant) -> None:
        held = _allocated(self._place.folder / variant.artifact / "data")
        needed = max(variant.length - held, 0) + self._place.reserve_bytes
        free = self._free()
        if free < needed:
            raise StorageError(  # may be tried again: somebody makes room, and the order still stands
                f"no room: {variant.name} needs {variant.length} bytes and {self._place.reserve_bytes} must stay free, {free} are free"
            )

    def _free(self) -> int:
        return shutil.disk_usage(self._place.folder).free

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
        self.how = "copied from the serving slot"
        return target

    def _fetch_group(self, partial: PartialArtifact, group: int) -> None:
        if not partial.missing(group):
            return
        while lacking := partial.missing(group):
            self._fetch_window(partial, group, self._window.cut(lacking))
        partial.sync()

    def _fetch_window(self, partial: PartialArtifact, group: int, wanted: int) -> None:
        """As many chunks as the link takes at once."""
        begun, before = self._clock(), self._received
        for chunk in self._source.chunks(partial.digest, group=group, missing=lambda: partial.missing(group) & wanted):
            self._received += len(chunk.data)
            if partial.store(chunk):
                self._progress(partial)
            elif partial.lacks(chunk.index):
                self._count_wrong(partial, chunk.index)
        self._window.arrived(self._received - before, self._clock() - begun)
        self._pace.take(self._received - before)

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
