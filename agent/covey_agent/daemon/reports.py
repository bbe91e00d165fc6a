"""The full reported state: built from scratch each time, numbered, and sent on every change, every connection and now and then.

The server never merges pieces: the highest generation wins. Generations are reserved in blocks, durably, so that a number is never
used for two states.
"""

import logging
from collections.abc import Callable

from covey_agent.daemon.kit import Kit
from covey_agent.errors import StoreError
from covey_contract.codec import encode
from covey_contract.messages import Presence, Reported, Status
from covey_contract.topics import Channel

logger = logging.getLogger(__name__)
GENERATION_BLOCK = 100
SETTLE_S = 0.02  # changes that belong together make one report


class Reports:
    """`build` gives the state under a generation; it is called only when a report is due."""

    def __init__(self, kit: Kit, build: Callable[[int], Reported]) -> None:
        self._kit = kit
        self._build = build
        self._connected = False
        self._next, self._reserved = 0, 0

    def changed(self) -> None:
        """Something changed: report soon."""
        self._kit.timers.set_once("report-now", SETTLE_S, self._send)

    def progressed(self) -> None:
        """A download went on: report now and then."""
        self._kit.timers.set_once("report-progress", self._kit.settings.report.progress_interval_s, self._send)

    def connected(self) -> None:
        """Say that this device is there, and how it is."""
        self._connected = True
        topic, payload = status_message(self._kit.topic(Channel.STATUS), Presence.ONLINE, boot=self._kit.boot, at=self._kit.clock.now_ms())
        self._kit.broker.publish(topic, payload, retain=True)
        self._send()

    def disconnected(self) -> None:
        """Nothing can be sent; the next connection begins with a report."""
        self._connected = False
        for key in ("report-now", "report-progress", "report-again"):
            self._kit.timers.cancel(key)

    def _send(self) -> None:
        self._kit.timers.cancel("report-now")
        self._kit.timers.cancel("report-progress")
        if not self._connected:
            return
        sent = self._kit.broker.publish(self._kit.topic(Channel.REPORTED), encode(self._build(self._take_generation())))
        delay = self._kit.settings.report.interval_s if sent else 5.0
        self._kit.timers.set("report-again", delay, self._send)

    def _take_generation(self) -> int:
        if self._next >= self._reserved:
            try:
                self._next = self._kit.store.reserve("report", GENERATION_BLOCK)
                self._reserved = self._next + GENERATION_BLOCK
            except StoreError as exc:  # a device with a full disk must not fall silent: count on, and reserve when it can
                logger.warning("report numbers cannot be reserved: %s", exc)
        generation, self._next = self._next, self._next + 1
        return generation


def status_message(topic: str, presence: Presence, *, boot: str, at: int) -> tuple[str, bytes]:
    """Topic and payload of one presence message."""
    return topic, encode(Status(presence=presence, boot=boot, at=at))
