"""Deltas: what a device that serves one artifact needs in order to have another one of the same model.

    release published, or a device asks --order--> MAKING --made, worth it--> READY
                                                      \\--not worth it, too large, failed twice--> NONE

Rules:
- A pair is made once, in a child process with bounded memory and time, one at a time, and kept in the blob store for all devices.
- Only pairs of one model and one runtime are made, and only to a published release: a digest that somebody made up costs a look-up.
- A delta that is more than half of its artifact is not worth a second format; then devices fetch the whole.
- All deltas together stay within `delivery.delta_store_mb`: the oldest make room.
- Nothing here is signed: the signed manifest says what the result must be.
"""

import logging
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path

from sqlmodel import Session, col, func, select

from covey_contract.codec import digest_of
from covey_contract.errors import ContractError
from covey_contract.limits import CHUNK_BYTES
from covey_contract.messages import DeltaOffer, DeltaState
from covey_contract.offers import parse_delta_name
from covey_server.db import Database
from covey_server.errors import NotFoundError
from covey_server.parts import BlobStore
from covey_server.releases.models import Delta, DeltaRowState, Release, ReleaseState, Variant
from covey_server.settings import DeliverySettings

logger = logging.getLogger(__name__)
MAX_ATTEMPTS = 2
MAKE_TIMEOUT_S = 1800.0  # bsdiff takes about half a second a megabyte; one that hangs must not keep the others waiting for ever
MEMORY_FACTOR = 20  # bsdiff needs up to 17 times the larger file
MEMORY_FLOOR_BYTES = 256 * 1024 * 1024
NO_DELTA = DeltaOffer(state=DeltaState.NONE)
_REMEMBERED = 200  # chunk lists


class DeltaDesk:
    """Answers what devices ask about deltas. Called by the delivery thread."""

    def __init__(self, db: Database, blobs: BlobStore, settings: DeliverySettings) -> None:
        self._db = db
        self._blobs = blobs
        self._max_bytes = int(settings.delta_max_mb * 1e6)
        self._chunks: OrderedDict[str, list[str]] = OrderedDict()

    def offer(self, name: str) -> DeltaOffer:
        """The answer to a want of `deltas/<base>/<target>`; orders a delta that could be made and is not."""
        try:
            base, target = parse_delta_name(name)
        except ContractError:
            return NO_DELTA
        with self._db.read() as session:
            row = session.get(Delta, (base, target))
            if row is not None:
                return self._describe(row)
            if not is_possible(session, base, target, max_bytes=self._max_bytes):
                return NO_DELTA
        with self._db.begin() as session:
            order_delta(session, base, target)
        return DeltaOffer(state=DeltaState.MAKING)

    def _describe(self, row: Delta) -> DeltaOffer:
        if row.state is not DeltaRowState.READY:
            return DeltaOffer(state=DeltaState(row.state.value))
        try:
            chunks = self._chunks_of(row.digest, row.length)
        except NotFoundError:
            return NO_DELTA
        return DeltaOffer(state=DeltaState.READY, digest=row.digest, length=row.length, chunks=chunks)

    def _chunks_of(self, digest: str, length: int) -> list[str]:
        known = self._chunks.get(digest)
        if known is None:
            known = [digest_of(self._blobs.read_range(digest, start, CHUNK_BYTES)) for start in range(0, length, CHUNK_BYTES)]
            self._chunks[digest] = known
            while len(self._chunks) > _REMEMBERED:
                self._chunks.popitem(last=False)
        return known


class DeltaMaker:
    """Makes what is ordered, one at a time. `tick` starts a child or looks after it; it never waits."""

    def __init__(self, db: Database, blobs: BlobStore, settings: DeliverySettings, *, timeout_s: float = MAKE_TIMEOUT_S) -> None:
        self._db = db
        self._blobs = blobs
        self._settings = settings
        self._timeout_s = timeout_s
        self._begun_at = 0.0  # monotonic
        self._child: subprocess.Popen[bytes] | None = None
        self._pair = ("", "")
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._seen: int | None = None  # id of the newest published release for which deltas were ordered

    def tick(self) -> None:
        """Go on."""
        if self._child is None:
            self._order_for_new_releases()
            self._begin()
        elif self._child.poll() is not None:
            self._end(self._child.returncode)
        elif time.monotonic() - self._begun_at > self._timeout_s:
            logger.warning("a delta was not made within %.0f s", self._timeout_s)
            self._child.kill()  # the next tick takes note of its end

    def close(self) -> None:
        """The worker stops; what was under way is made at its next start."""
        if self._child is not None:
            self._child.kill()
            self._child.wait()
            self._clean()

    def _order_for_new_releases(self) -> None:
        """Before the first device asks. What was published before this worker began is made when somebody asks."""
        with self._db.read() as session:
            newest = session.exec(select(func.max(Release.id)).where(Release.state == ReleaseState.PUBLISHED)).one() or 0
        if self._seen is not None and newest > self._seen:
            with self._db.begin() as session:
                query = select(Release).where(Release.state == ReleaseState.PUBLISHED, col(Release.id) > self._seen)
                for release in session.exec(query).all():
                    order_for_release(session, release, max_bytes=int(self._settings.delta_max_mb * 1e6))
        self._seen = newest

    def _begin(self) -> None:
        with self._db.begin() as session:
            query = select(Delta).where(Delta.state == DeltaRowState.MAKING).order_by(col(Delta.created_at)).limit(1)
            row = session.exec(query).first()
            if row is None:
                return
            row.attempts += 1
            if row.attempts > MAX_ATTEMPTS:
                row.state, row.reason = DeltaRowState.NONE, row.reason or f"it was tried {MAX_ATTEMPTS} times"
                return
            pair = (row.base, row.target)
        try:
            files = [str(self._blobs.path(digest)) for digest in pair]
        except NotFoundError as exc:
            self._settle(pair, reason=str(exc))
            return
        self._pair, self._begun_at = pair, time.monotonic()
        self._folder = tempfile.TemporaryDirectory(prefix="covey-delta-")
        memory = max(MEMORY_FLOOR_BYTES, MEMORY_FACTOR * max(Path(file).stat().st_size for file in files))
        command = [sys.executable, "-m", "covey_server.releases.delta_child", *files, str(self._out())]
        self._child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        with suppress(ProcessLookupError):  # it has ended already
            resource.prlimit(self._child.pid, resource.RLIMIT_DATA, (memory, memory))
            os.setpriority(os.PRIO_PROCESS, self._child.pid, 10)

    def _end(self, code: int) -> None:
        child, out = self._child, self._out()
        if child is None:
            return
        said = child.stderr.read() if child.stderr else b""
        try:
            if code != 0 or not out.exists():
                last = said.decode("utf-8", "replace").strip().rpartition("\n")[2][-200:]
                logger.warning("the delta to %s could not be made (exit code %d): %s", self._pair[1][:12], code, last)
                with self._db.begin() as session:
                    row = session.get(Delta, self._pair)
                    if row is not None:
                        row.reason = f"exit code {code}: {last}"  # stays MAKING: the next tick tries once more, or gives up
                return
            self._keep(out)
        finally:
            self._clean()

    def _keep(self, out: Path) -> None:
        whole, length = self._blobs.path(self._pair[1]).stat().st_size, out.stat().st_size
        if length > whole // 2:
            self._settle(self._pair, reason=f"not worth it: {length} of {whole} bytes")
            return
        digest, length = self._blobs.put_file(out)
        with self._db.begin() as session:
            make_room(session, self._blobs, needed=length, limit=int(self._settings.delta_store_mb * 1e6))
            row = session.get(Delta, self._pair)
            if row is not None:
                row.state, row.digest, row.length, row.reason = DeltaRowState.READY, digest, length, ""
        logger.info("delta %s -> %s: %d bytes instead of %d", self._pair[0][:12], self._pair[1][:12], length, whole)

    def _settle(self, pair: tuple[str, str], *, reason: str) -> None:
        with self._db.begin() as session:
            row = session.get(Delta, pair)
            if row is not None:
                row.state, row.reason = DeltaRowState.NONE, reason

    def _out(self) -> Path:
        return Path(self._folder.name if self._folder else "") / "patch"

    def _clean(self) -> None:
        if self._child is not None and self._child.stderr is not None:
            self._child.stderr.close()
        if self._folder is not None:
            self._folder.cleanup()
        self._child = self._folder = None


def order_for_release(session: Session, release: Release, *, max_bytes: int) -> None:
    """Order a delta for each variant from the same variant of the newest published release before it."""
    before = session.exec(
        select(Release)
        .where(Release.model == release.model, Release.state == ReleaseState.PUBLISHED, col(Release.version) < release.version)
        .order_by(col(Release.version).desc())
        .limit(1)
    ).first()
    if before is None:
        return
    old = {variant.name: variant for variant in session.exec(select(Variant).where(Variant.release_id == before.id))}
    for variant in session.exec(select(Variant).where(Variant.release_id == release.id, col(Variant.accepted).is_(True))):
        base = old.get(variant.name)
        if base is not None and is_possible(session, base.artifact, variant.artifact, max_bytes=max_bytes):
            order_delta(session, base.artifact, variant.artifact)


def order_delta(session: Session, base: str, target: str) -> None:
    """Note that a delta is wanted, unless that is known."""
    if session.get(Delta, (base, target)) is None:
        session.add(Delta(base=base, target=target))


def is_possible(session: Session, base: str, target: str, *, max_bytes: int) -> bool:
    """Whether both are artifacts of one model for one runtime, not too large, and the target's release is published."""
    if not base or not target or base == target:
        return False
    known = {
        digest: session.exec(
            select(Release.model, Variant.runtime, Variant.length, Release.state)
            .join(Variant, col(Variant.release_id) == Release.id)
            .where(Variant.artifact == digest, col(Variant.accepted).is_(True))
        ).all()
        for digest in (base, target)
    }
    small = {digest: [row for row in rows if row[2] <= max_bytes] for digest, rows in known.items()}
    wanted = {(model, runtime) for model, runtime, _, state in small[target] if state is ReleaseState.PUBLISHED}
    return any((model, runtime) in wanted for model, runtime, _, _ in small[base])


def delta_length(session: Session, digest: str) -> int | None:
    """The length of a delta that may be sent: it is ready, and its target's release is published."""
    query = (
        select(Delta.length)
        .join(Variant, col(Variant.artifact) == Delta.target)
        .join(Release, col(Release.id) == Variant.release_id)
        .where(Delta.digest == digest, Delta.state == DeltaRowState.READY, Release.state == ReleaseState.PUBLISHED)
    )
    return session.exec(query).first()


def make_room(session: Session, blobs: BlobStore, *, needed: int, limit: int) -> None:
    """Give up the oldest deltas until `needed` more bytes fit."""
    held = session.exec(select(func.coalesce(func.sum(Delta.length), 0)).where(Delta.state == DeltaRowState.READY)).one()
    query = select(Delta).where(Delta.state == DeltaRowState.READY).order_by(col(Delta.created_at))
    for row in session.exec(query).all():
        if held + needed <= limit:
            return
        held -= row.length
        blobs.delete(row.digest)
        row.state, row.reason, row.length = DeltaRowState.NONE, "it made room for newer ones", 0
