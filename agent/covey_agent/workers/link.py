"""The bulk connection: metadata and chunks over MQTT, asked for until they come.

    with BulkLink(job.broker) as link:
        part = link.fetch_part("metadata/timestamp.json", 0)
        for chunk in link.chunks(digest, group=0, missing=store_says):
            ...

Rules:
- It is a second connection (with a client id of its own), so that 64 KiB chunks never stand in front of a command.
- The window is small: one file part, or one group of chunks, is under way at a time, on exact topics; who asks for the next group, or says
  `leave`, hears no more of the one before.
- Everything is QoS 0. A question is repeated until it is answered (`patience.py`), so a broker that writes each chunk to its own
  disk first would add cost and no safety.
- There is no thread: the network loop runs while the caller waits. What the caller does not read stays in the kernel and slows
  the sender down, so memory is bounded whatever arrives.
- What comes is a claim: the caller verifies it.
"""

import logging
import secrets
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Protocol, Self, TypeVar

from covey_agent.core.jobs import BrokerAddress
from covey_agent.workers.connection import Connection, LinkSettings
from covey_agent.workers.errors import NetworkError
from covey_agent.workers.patience import Patience
from covey_contract.codec import Want, decode, encode
from covey_contract.errors import ContractError
from covey_contract.ids import Digest, parse_device_id
from covey_contract.messages import Chunk, MetadataPart, WantChunks, WantMetadata
from covey_contract.topics import Channel, chunk_topic, device_topic

T = TypeVar("T")
logger = logging.getLogger(__name__)


class PartSource(Protocol):
    """Who answers WantMetadata."""

    def __call__(self, name: str, part: int) -> MetadataPart:
        """One part of the file `name`. Raises NetworkError."""
        ...


class ChunkSource(Protocol):
    """Who answers WantChunks."""

    def chunks(self, digest: Digest, *, group: int, missing: Callable[[], int]) -> Iterator[Chunk]:
        """Yield what comes for a group until `missing()`, a bit mask, is 0. Raises NetworkError when nothing more comes."""
        ...


class BulkLink:
    """One connection to the broker, made when first needed and made again when lost."""

    def __init__(self, broker: BrokerAddress, *, role: str = "bulk", settings: LinkSettings | None = None) -> None:
        """`role` is part of the client id: two connections with the same id would throw each other out."""
        self._settings = settings or LinkSettings()
        self._connection = Connection(broker, role=role, settings=self._settings)
        self._device = parse_device_id(broker.device)
        self._part_patience = self._connection.new_patience(self._settings.metadata)
        self._chunk_patience = self._connection.new_patience(self._settings.chunks)
        self._listening = ""  # the group's topic that is subscribed to

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Disconnect politely."""
        self._connection.close()

    @property
    def round_trip_s(self) -> float | None:
        """How long the server takes to answer a question; None before the first one."""
        return self._part_patience.round_trip_s

    def fetch_part(self, name: str, part: int) -> MetadataPart:
        """Ask for one part of a metadata file or target until it comes. Raises NetworkError."""
        want = WantMetadata(id=secrets.token_hex(8), name=name, part=part)
        topic = device_topic(self._device, Channel.METADATA)
        asking = self._ask(lambda: want, topic, patience=self._part_patience, what=f"{name}, part {part}")
        while True:
            answer = _parse(asking.next(), MetadataPart)
            if answer is not None and (answer.id, answer.part) == (want.id, part):
                asking.progressed()
                return answer

    def chunks(self, digest: Digest, *, group: int, missing: Callable[[], int]) -> Iterator[Chunk]:
        """Ask for the missing chunks of a group until none is. Yields whatever comes on the group's topic, right or wrong."""
        topic = chunk_topic(digest, group)
        if self._listening != topic:
            self.leave()
            self._listening = topic
        asking = self._ask(
            lambda: WantChunks(digest=digest, group=group, missing=missing()),
            topic,
            patience=self._chunk_patience,
            what=f"chunks of {digest[:12]}, group {group}",
        )
        while lacking := missing():
            chunk = _parse(asking.next(), Chunk)
            if chunk is not None:
                yield chunk
                if missing() != lacking:
                    asking.progressed()

    def leave(self) -> None:
        """Hear no more chunks. Until then a group that is asked for piece by piece is subscribed to once: each time is a round trip."""
        if self._listening:
            self._connection.unsubscribe(self._listening)
            self._listening = ""

    def _ask(self, question: Callable[[], Want], topic: str, *, patience: Patience, what: str) -> "_Asking":
        want_topic = device_topic(self._device, Channel.WANT)
        return _Asking(self._connection, question, topic=topic, want_topic=want_topic, patience=patience, what=what)


class _Asking:
    """One question, repeated until the caller has what it wants."""

    def __init__(
        self, connection: Connection, question: Callable[[], Want], *, topic: str, want_topic: str, patience: Patience, what: str
    ) -> None:
        self._connection = connection
        self._question = question
        self._topic = topic
        self._want_topic = want_topic
        self._patience = patience
        self._what = what
        self._asked = False
        self._ask_at = connection.now()
        patience.begin(now=self._ask_at)

    def next(self) -> bytes:
        """The next payload on the topic; asks (again) whenever it is time, or when the connection was lost meanwhile."""
        while True:
            now = self._connection.now()
            # Before the inbox is looked at: a flood of wrong answers must not keep this alive.
            if self._patience.is_over(now=now):
                raise NetworkError(f"no answer to the request for {self._what} within {now - self._patience.progress_at:.0f} s")
            if now >= self._ask_at or not self._connection.is_subscribed(self._topic):
                if now >= self._ask_at and self._asked:
                    logger.info("asking again for %s", self._what)
                self._asked = True
                self._connection.subscribe(self._topic)
                self._connection.publish(self._want_topic, encode(self._question()))
                now = self._connection.now()
                self._ask_at = now + self._patience.asked(now=now)
            payload = self._connection.take(self._topic)
            if payload is not None:
                return payload
            self._connection.pump(self._ask_at - now)

    def progressed(self) -> None:
        """Something new came: wait again before the next asking."""
        now = self._connection.now()
        self._ask_at = now + self._patience.answered(now=now)


def _parse(payload: bytes, kind: type[T]) -> T | None:
    try:
        return decode(payload, kind)
    except ContractError as exc:
        logger.warning("dropped a message: %s", exc)
        return None
