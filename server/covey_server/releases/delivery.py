"""Delivery: answers what devices want on `up/want`, in a thread of its own, so that chunks never delay other messages.

- WantChunks -> Chunk messages on the group's shared topic, coalesced over devices (`coalesce.py`).
- WantMetadata -> one MetadataPart on the device's own `down/metadata`.

Answers do not pass through the outbox: a device that misses one asks again. Only artifacts of published releases are sent.
What is refused is counted by reason, for /metrics. At most `max_inflight` messages wait for the broker's acknowledgement and a
token bucket bounds the bytes a second; when the broker stands still, waiting wants are dropped rather than piled up.
"""

import hashlib
import logging
import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from queue import Empty, Full, Queue
from typing import Protocol, Self

from covey_contract import limits
from covey_contract.codec import encode
from covey_contract.ids import DeviceId, Digest
from covey_contract.messages import Chunk, MetadataPart, WantChunks, WantMetadata
from covey_contract.offers import DELTAS, DOWNLOADS
from covey_contract.topics import Channel, chunk_topic, device_topic
from covey_server.clock import utc_now
from covey_server.db import Database
from covey_server.errors import CoveyServerError
from covey_server.parts import BlobStore, Repository
from covey_server.releases.coalesce import Coalescer, Group, TokenBucket, group_bits
from covey_server.releases.deltas import DeltaDesk
from covey_server.releases.downloads import DownloadDesk
from covey_server.releases.sendable import sendable_length
from covey_server.releases.store import CorruptBlobError
from covey_server.settings import DeliverySettings
from covey_server.triggers.models import Severity
from covey_server.triggers.service import raise_alert

logger = logging.getLogger(__name__)
Want = WantChunks | WantMetadata
# Metadata goes before chunks, because nothing begins without it, but a flood of requests must not fill the memory.
_METADATA_HEADROOM = 4


class Sending(Protocol):
    """A message on its way; paho's MQTTMessageInfo is one."""

    def is_published(self) -> bool:
        """Whether the broker has it."""
        ...


class Publisher(Protocol):
    """The connection to the broker; paho's Client is one."""

    def publish(self, topic: str, payload: bytes, qos: int) -> Sending:
        """Hand over one message without waiting for the broker."""
        ...


@dataclass(frozen=True, slots=True)
class DeliveryLimits:
    """Bounds of delivery."""

    window_s: float = 0.05  # how long a want waits for others of the same wave
    max_inflight: int = 64  # messages that the broker has not acknowledged
    bytes_per_s: float = 32e6
    burst_bytes: float = 4e6
    queue_length: int = 20_000  # wants that may wait
    stall_s: float = 10.0  # without any acknowledgement for so long, what is in flight and waiting is given up
    catalogue_s: float = 5.0  # how long the answer "this digest may be sent" is believed

    @classmethod
    def of(cls, settings: DeliverySettings) -> Self:
        """The bounds that the operator has set; the rest as they are by default."""
        rate = settings.max_mb_per_s * 1e6
        return cls(
            window_s=settings.window_ms / 1000,
            max_inflight=settings.max_inflight,
            bytes_per_s=rate,
            burst_bytes=max(rate / 8, 2 * limits.CHUNK_BYTES),
        )


class Delivery:
    """One per worker. `accept` is called by the router's thread, everything else happens in `run`."""

    def __init__(
        self,
        db: Database,
        blobs: BlobStore,
        repository: Repository,
        publisher: Publisher,
        *,
        deltas: DeltaDesk | None = None,
        downloads: DownloadDesk | None = None,
        bounds: DeliveryLimits | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._bounds = bounds or DeliveryLimits()
        self._clock = clock
        self._publisher = publisher
        self._blobs = blobs
        self._repository = repository
        self._deltas = deltas
        self._downloads = downloads
        self._catalogue = _Catalogue(db, blobs, keep_s=self._bounds.catalogue_s)
        self._queue: Queue[tuple[DeviceId, Want, float]] = Queue(self._bounds.queue_length)
        self._coalescer = Coalescer(self._bounds.window_s)
        self._bucket = TokenBucket(self._bounds.bytes_per_s, self._bounds.burst_bytes)
        self._inflight: deque[Sending] = deque()
        self._moved_at = clock()
        self._stopped = threading.Event()
        self.counters: Counter[str] = Counter()  # chunks_sent, bytes_sent, chunks_coalesced, parts_sent, refused_..., dropped_...

    def accept(self, device: DeviceId, want: Want) -> None:
        """Take one want from a device; it is answered later, or dropped and counted if too many wait."""
        try:
            self._queue.put_nowait((device, want, self._clock()))
        except Full:
            self.counters["dropped_queue_full"] += 1

    def run(self) -> None:
        """Answer wants until `stop`; the body of the thread."""
        while not self._stopped.is_set():
            try:
                self.step(max_wait_s=0.2)
            except CoveyServerError as exc:
                logger.warning("a want could not be answered: %s", exc)
            except Exception:  # top of a thread's loop: one bad file or a database that is away must not end delivery
                logger.exception("delivery failed")
                self._stopped.wait(1.0)

    def stop(self) -> None:
        """Let `run` return."""
        self._stopped.set()

    def step(self, *, max_wait_s: float) -> None:
        """Take in what has come, then send one chunk if one is due; waits at most `max_wait_s` if there is nothing to do."""
        self._take_in(max_wait_s)
        now = self._clock()
        wait_s = self._wait_for_room(now)
        if wait_s > 0:
            self._stopped.wait(min(wait_s, max_wait_s))
            return
        taken = self._coalescer.take(now)
        if taken is not None:
            self._send_chunk(*taken, now=now)

    def _take_in(self, max_wait_s: float) -> None:
        due = self._coalescer.next_due()
        idle_s = max_wait_s if due is None else max(0.0, min(max_wait_s, due - self._clock()))
        try:
            item = self._queue.get(timeout=idle_s) if idle_s > 0 else self._queue.get_nowait()
            while True:
                self._answer(*item)
                item = self._queue.get_nowait()
        except Empty:
            return

    def _answer(self, device: DeviceId, want: Want, asked_at: float) -> None:
        match want:
            case WantChunks():
                self._note_chunks(device, want, asked_at)
            case WantMetadata():
                self._send_part(device, want)
            case _:
                raise TypeError(f"expected a want, got {type(want).__name__}")

    def _note_chunks(self, device: DeviceId, want: WantChunks, asked_at: float) -> None:
        length = self._catalogue.length_of(want.digest, self._clock())
        if length is None:
            self._refuse("refused_unknown_digest", device, f"artifact {want.digest[:12]} belongs to no published release, or is damaged")
            return
        existing = group_bits(length, want.group)
        if want.missing & ~existing or not existing:
            self._refuse("refused_out_of_range", device, f"artifact {want.digest[:12]} has no such chunks in group {want.group}")
            return
        saved = self._coalescer.add(Group(want.digest, want.group), want.missing, asked_at=asked_at, asker=device)
        self.counters["dropped_too_many_groups" if saved < 0 else "chunks_coalesced"] += abs(saved)

    def _send_chunk(self, group: Group, chunk: int, *, now: float) -> None:
        index = group.number * limits.GROUP_CHUNKS + chunk
        if self._catalogue.length_of(group.digest, now) is None:  # withdrawn while it waited
            self._coalescer.drop(group.digest)
            return
        data = self._blobs.read_range(group.digest, index * limits.CHUNK_BYTES, limits.CHUNK_BYTES)
        payload = encode(Chunk(index=index, data=data))
        self._send(chunk_topic(Digest(group.digest), group.number), payload)
        self.counters["chunks_sent"] += 1
        self.counters["bytes_sent"] += len(payload)

    def _send_part(self, device: DeviceId, want: WantMetadata) -> None:
        if len(self._inflight) >= _METADATA_HEADROOM * self._bounds.max_inflight:
            self.counters["dropped_busy"] += 1
            return
        data = self._read_file(want.name)
        parts = 0 if data is None else max(1, -(-len(data) // limits.METADATA_PART_BYTES))
        if data is not None and want.part >= parts:
            self._refuse("refused_out_of_range", device, f"{want.name} has {parts} parts, part {want.part} was wanted")
            return
        start = want.part * limits.METADATA_PART_BYTES
        piece = b"" if data is None else data[start : start + limits.METADATA_PART_BYTES]
        self._send(device_topic(device, Channel.METADATA), encode(MetadataPart(id=want.id, part=want.part, parts=parts, data=piece)))
        self.counters["parts_sent" if parts else "parts_unknown"] += 1

    def _read_file(self, name: str) -> bytes | None:
        if name.startswith(DELTAS):
            return None if self._deltas is None else encode(self._deltas.offer(name))
        if name.startswith(DOWNLOADS):
            return None if self._downloads is None else encode(self._downloads.offer(name))
        return self._repository.read_file(name)

    def _send(self, topic: str, payload: bytes) -> None:
        self._inflight.append(self._publisher.publish(topic, payload, 1))

    def _wait_for_room(self, now: float) -> float:
        """0 if a chunk may go out now, else how long to wait before looking again."""
        while self._inflight and _is_done(self._inflight[0]):
            self._inflight.popleft()
            self._moved_at = now
        if not self._inflight:
            self._moved_at = now
        if now - self._moved_at > self._bounds.stall_s:
            logger.warning(
                "the broker has acknowledged nothing for %.0f s; %d messages are given up", now - self._moved_at, len(self._inflight)
            )
            self.counters["dropped_stalled"] += len(self._inflight)
            self._inflight.clear()
            self._coalescer.clear()
            self._moved_at = now
        due = self._coalescer.next_due()
        if due is None or due > now:
            return 0.0
        if len(self._inflight) >= self._bounds.max_inflight:
            return 0.002  # a broker on the same network acknowledges within a few of these
        return self._bucket.wait_s(limits.CHUNK_BYTES, now)

    def _refuse(self, reason: str, device: DeviceId, detail: str) -> None:
        self.counters[reason] += 1
        # The first is worth a look, a flood of them is not worth a full disk.
        logger.log(logging.WARNING if self.counters[reason] == 1 else logging.DEBUG, "want of %s refused: %s", device, detail)


def _is_done(sending: Sending) -> bool:
    try:
        return sending.is_published()
    except (ValueError, RuntimeError):
        return True  # paho: refused when it was handed over (no connection, full queue); the device will ask again


class _Catalogue:
    """Which artifacts may be sent, remembered for a moment; each one's bytes are checked once before they are first sent."""

    def __init__(self, db: Database, blobs: BlobStore, *, keep_s: float, size: int = 1000) -> None:
        self._db = db
        self._blobs = blobs
        self._keep_s = keep_s
        self._size = size
        self._known: OrderedDict[str, tuple[float, int | None]] = OrderedDict()
        self._sound: set[str] = set()

    def length_of(self, digest: str, now: float) -> int | None:
        """The artifact's length, None if it may not be sent."""
        known = self._known.get(digest)
        if known is not None and now - known[0] < self._keep_s:
            return known[1]
        with self._db.read() as session:
            length = sendable_length(session, digest)
        if length is not None and digest not in self._sound:
            length = self._checked(digest, length)
        self._known[digest] = (now, length)
        self._known.move_to_end(digest)
        while len(self._known) > self._size:  # random digests from outside must not fill the memory
            self._known.popitem(last=False)
        return length

    def _checked(self, digest: str, length: int) -> int | None:
        try:
            with self._blobs.path(digest).open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except CoveyServerError as exc:
            self._tell_damaged(digest, exc)
            return None
        if found != digest:
            self._tell_damaged(digest, CorruptBlobError(digest, found))
            return None
        self._sound.add(digest)
        return length

    def _tell_damaged(self, digest: str, error: CoveyServerError) -> None:
        """Devices only see that nothing comes, so operators are told."""
        logger.error("artifact %s of a published release cannot be sent: %s", digest, error)
        with self._db.begin() as session:
            raise_alert(session, "artifact_damaged", severity=Severity.CRITICAL, detail=str(error), subject=digest, now=utc_now())
