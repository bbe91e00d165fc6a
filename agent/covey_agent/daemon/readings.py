"""Readings on their way: a number each, kept until the server has committed it, bounded, counted when lost.

Two stages: fresh readings wait in memory, and go to disk when they are urgent, when they have waited too long, or when they were not
acknowledged in time. While the server answers promptly, telemetry therefore costs no flash writes at all. Sequence numbers are
reserved in blocks, durably, so that none is ever used twice.
"""

import logging
from collections.abc import Mapping
from dataclasses import replace

from covey_agent.core.backoff import RESEND
from covey_agent.core.buffer import URGENT, Entry, count_overflow, cut_batch, encode_batch, fit_reading, make_entry, oldest_allowed
from covey_agent.core.walltime import ClockState
from covey_agent.daemon.kit import Kit
from covey_agent.errors import StoreError
from covey_agent.ports import ReadingStore
from covey_contract import limits
from covey_contract.codec import decode
from covey_contract.errors import ContractError
from covey_contract.messages import Ack, Priority, Reading, Scalar
from covey_contract.topics import Channel

logger = logging.getLogger(__name__)
SEQUENCE_BLOCK = 1000
LOOK_FOR_OLD_S = 3600.0  # every reading on disk is looked at, so not each time
MAX_FRESH = 4000  # readings in memory, if the disk takes none


class Readings:
    """The buffer and its sender; one batch is under way at a time."""

    def __init__(self, kit: Kit, disk: ReadingStore) -> None:
        self._kit = kit
        self._disk = disk
        self._fresh: list[Entry] = []
        self._settled: list[str] = []  # stored values that go with the next write
        self._next, self._reserved = 0, 0
        self._in_flight: int | None = None  # the last sequence of the batch under way
        self._sent_upto = 0  # by this process: an acknowledgement of anything later cannot be true
        self._told_lost: dict[Priority, int] = {}  # with the batch sent last
        self._resends = 0
        self._connected = False
        self._dropped_fresh: dict[Priority, int] = {}
        self._look_for_old_at = 0.0  # monotonic

    def add(
        self, kind: str, values: Mapping[str, Scalar], *, priority: Priority = Priority.METRIC, at: int | None = None, settles: str = ""
    ) -> None:
        """One more reading, made now or at `at` (ms). `settles` names a stored value that goes in the same write that keeps the reading."""
        made = self._kit.clock.now_ms() if at is None else at
        state = self._kit.clock.state
        if state is not ClockState.SET:
            values = {**values, "clock": state.value}  # its time is not to be trusted
        try:
            sequence = self._take_sequence()
        except StoreError as exc:  # telemetry gives way: whoever adds a reading has something more important to go on with
            logger.warning("a %s reading is lost, since no number could be reserved: %s", kind, exc)
            self._dropped_fresh[priority] = self._dropped_fresh.get(priority, 0) + 1
            return
        reading = fit_reading(Reading(at=made, kind=kind, values=dict(values), priority=priority))
        entry = make_entry(sequence, reading)
        # Made at the floor of an unset clock, it would look old as soon as the clock is set: it has no age.
        self._fresh.append(entry if state is not ClockState.BEHIND else replace(entry, at=0))
        if settles:
            self._settled.append(settles)
        if priority in URGENT or len(self._fresh) >= MAX_FRESH:
            self._flush()
        else:
            self._kit.timers.set_once("readings-flush", self._kit.settings.readings.flush_interval_s, self._flush)
        if self._connected and self._in_flight is None:
            self._kit.timers.set_once("readings-send", self._kit.settings.readings.send_interval_s, self._send)

    def connected(self) -> None:
        """A connection began: what was under way may be lost, so it is sent again."""
        self._connected, self._resends = True, 0
        self._in_flight = None
        self._kit.timers.cancel("readings-ack")
        self._send()

    def disconnected(self) -> None:
        """Nothing can be sent; the disk keeps what comes."""
        self._connected = False
        self._in_flight = None
        self._kit.timers.cancel("readings-ack")
        self._kit.timers.cancel("readings-send")

    def ack_came(self, payload: bytes) -> None:
        """The server has committed readings."""
        try:
            ack = decode(payload, Ack)
        except ContractError as exc:
            logger.warning("an acknowledgement was refused: %s", exc)
            return
        if ack.epoch != self._disk.epoch or ack.upto > self._sent_upto:
            logger.warning("an acknowledgement of epoch %s up to %d is not about what was sent: ignored", ack.epoch, ack.upto)
            return
        self._fresh = [entry for entry in self._fresh if entry.sequence > ack.upto]
        try:
            self._disk.delete_through(ack.upto)
            if ack.forked:
                self._begin_epoch()
        except StoreError as exc:  # they stay, are sent again, and the server knows them
            logger.warning("acknowledged readings cannot be deleted: %s", exc)
        if self._in_flight is not None and (ack.upto >= self._in_flight or ack.forked):
            self._in_flight, self._resends = None, 0
            self._kit.timers.cancel("readings-ack")
            self._send()

    def _begin_epoch(self) -> None:
        """The server knows other readings under these numbers: this state was restored from a copy. New names, and nothing is lost."""
        logger.warning("the server knows other readings under these numbers: this state was restored from a copy; a new epoch begins")
        self._disk.begin_epoch(told=self._told_lost)
        self._sent_upto = 0

    def close(self) -> None:
        """The agent stops: nothing stays in memory only."""
        self._flush(durable=True)

    def waiting_bytes(self) -> int:
        """Everything that the server has not acknowledged."""
        return sum(self._disk.sizes().values()) + sum(len(entry.data) for entry in self._fresh)

    def _send(self) -> None:
        if not self._connected or self._in_flight is not None:
            return
        try:
            entries, lost = self._first_entries(), self._lost()
        except StoreError as exc:
            logger.warning("readings cannot be read from disk: %s", exc)
            self._kit.timers.set("readings-send", self._kit.settings.readings.ack_timeout_s, self._send)
            return
        if not entries:
            return
        payload, count = encode_batch(self._disk.epoch, entries, lost)
        if not self._kit.broker.publish(self._kit.topic(Channel.READINGS), payload):
            self._kit.timers.set("readings-send", self._kit.settings.readings.ack_timeout_s, self._send)
            return
        self._in_flight = self._sent_upto = entries[count - 1].sequence
        self._told_lost = lost
        timeout = self._kit.settings.readings.ack_timeout_s
        if self._resends:
            timeout = max(timeout, RESEND.delay_s(self._resends, self._kit.random))
        self._kit.timers.set("readings-ack", timeout, self._not_acknowledged)

    def _first_entries(self) -> list[Entry]:
        """The oldest entries: from disk if any are there (then those in memory go there first, to keep the order), else from memory."""
        if not any(self._disk.sizes().values()):
            return cut_batch(self._fresh)
        self._flush()
        return cut_batch(self._disk.oldest(limits.MAX_READINGS_PER_BATCH))

    def _not_acknowledged(self) -> None:
        self._in_flight = None
        self._resends += 1
        self._flush()
        self._send()

    def _flush(self, *, durable: bool | None = None) -> None:
        self._kit.timers.cancel("readings-flush")
        if not self._fresh:
            return
        urgent = any(entry.priority in URGENT for entry in self._fresh)
        try:
            self._disk.append(self._fresh, durable=urgent if durable is None else durable, settles=self._settled)
            self._fresh, self._settled = [], []
            self._keep_bounds()
        except StoreError:
            logger.exception("readings cannot be written; they wait in memory")
            self._shed_fresh()

    def _keep_bounds(self) -> None:
        settings, dropped = self._kit.settings.readings, 0
        # By a clock in doubt everything could look too old.
        if self._kit.clock.state is ClockState.SET and self._kit.clock.monotonic() >= self._look_for_old_at:
            since, before = oldest_allowed(self._kit.clock.now_ms(), max_age_ms=int(settings.max_age_days * 86_400_000))
            dropped = self._disk.drop_made(since, before)
            self._look_for_old_at = self._kit.clock.monotonic() + LOOK_FOR_OLD_S
        for priority, size in count_overflow(self._disk.sizes(), limit=int(settings.max_mb * 1024 * 1024)).items():
            dropped += self._disk.drop_oldest(priority, size=size)
        if dropped:
            logger.warning("%d readings were dropped: the buffer is full, or they were too old", dropped)

    def _shed_fresh(self) -> None:
        """Neither disk nor server takes them: the memory is bounded too."""
        excess = len(self._fresh) - MAX_FRESH
        if excess <= 0:
            return
        doomed = sorted(self._fresh, key=lambda entry: (-entry.priority.value, entry.sequence))[:excess]
        gone = {entry.sequence for entry in doomed}
        self._fresh = [entry for entry in self._fresh if entry.sequence not in gone]
        for entry in doomed:
            self._dropped_fresh[entry.priority] = self._dropped_fresh.get(entry.priority, 0) + 1

    def _lost(self) -> dict[Priority, int]:
        for priority, count in list(self._dropped_fresh.items()):
            self._disk.add_lost(priority, count)
            del self._dropped_fresh[priority]
        return self._disk.lost()

    def _take_sequence(self) -> int:
        if self._next >= self._reserved:
            self._next = self._kit.store.reserve("sequence", SEQUENCE_BLOCK)
            self._reserved = self._next + SEQUENCE_BLOCK
        sequence, self._next = self._next, self._next + 1
        return sequence
