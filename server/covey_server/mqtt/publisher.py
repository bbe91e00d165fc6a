"""MQTT out: the outbox's rows go to the broker after their transaction has committed, in order, at least once.

A row is marked as sent when the broker has acknowledged it. A row that was handed over and not yet acknowledged is not handed
over again: the link resends it after a reconnect. Only a restart of the worker sends such a row twice; receivers are
idempotent.
"""

import logging
import time
from collections.abc import Callable
from datetime import datetime
from threading import Event, Thread
from typing import Protocol

from sqlmodel import col, update

from covey_contract.errors import ContractError
from covey_server import outbox
from covey_server.clock import Clock, utc_now
from covey_server.db import Database
from covey_server.errors import CoveyServerError, UnavailableError
from covey_server.mqtt.link import Receipt
from covey_server.outbox import OutboxMessage

logger = logging.getLogger(__name__)

_BATCH = 100  # rows handed over before waiting for the broker
_ACK_S = 10.0
_IDLE_S = 0.05  # how soon a committed row is seen: the delay that an order to a device gets here


class Publisher(Protocol):
    """Sends at once, past the outbox: for chunks, which a device asks for again if they do not come."""

    def publish(self, topic: str, payload: bytes, qos: int = 1) -> None:
        """Send one message. Raises UnavailableError while the broker is away or takes no more."""
        ...


class Sender(Protocol):
    """What the publishers need of the link."""

    def send(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False) -> Receipt:
        """Hand one message over."""
        ...


class DirectPublisher:
    """A Publisher on a link; use a link of its own, so that chunks never delay commands."""

    def __init__(self, link: Sender) -> None:
        self._link = link
        self.sent = 0

    def publish(self, topic: str, payload: bytes, qos: int = 1) -> None:
        """Send one message now. Raises UnavailableError while the broker is away or takes no more."""
        self._link.send(topic, payload, qos=qos)
        self.sent += 1


class OutboxPublisher:
    """Sends what transactions left in the outbox."""

    def __init__(self, db: Database, link: Sender, *, clock: Clock = utc_now, ack_s: float = _ACK_S) -> None:
        self._db = db
        self._link = link
        self._clock = clock
        self._ack_s = ack_s
        self._handed_over: dict[int, Receipt] = {}
        self._stop = Event()
        self._thread: Thread | None = None
        self.sent = 0

    def start(self) -> None:
        """Send in a thread of its own until `stop`."""
        self._thread = Thread(target=self._run, name="outbox", daemon=True)
        self._thread.start()

    def stop(self, *, timeout_s: float = 10.0) -> None:
        """End the thread; what is unsent stays in the outbox."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout_s)

    def run_once(self) -> int:
        """Send the oldest unsent rows and mark those that the broker has; how many were marked. Raises UnavailableError."""
        with self._db.read() as session:
            rows = outbox.unsent(session, limit=_BATCH)
        ids = {row.id for row in rows if row.id is not None}
        # What is unsent no more was marked, replaced by a newer row or pruned.
        self._handed_over = {row_id: receipt for row_id, receipt in self._handed_over.items() if row_id in ids}
        failure: UnavailableError | None = None
        for row in rows:
            if row.id is None or row.id in self._handed_over:
                continue
            try:
                self._handed_over[row.id] = self._link.send(row.topic, row.payload, retain=row.retain)
            except ContractError as exc:  # it can never be sent; keeping it would stop all that come after
                logger.error("an outbox message cannot be sent and is dropped: %s", exc)  # noqa: TRY400 - the message says it all
                self._handed_over[row.id] = _Dropped()
            except UnavailableError as exc:
                failure = exc  # the order must be kept: nothing after this row may go out before it
                break
        marked = self._mark_sent()
        if failure is not None:
            raise failure
        return marked

    def _mark_sent(self) -> int:
        _wait_for(lambda: all(receipt.is_published() for receipt in self._handed_over.values()), timeout_s=self._ack_s, stop=self._stop)
        done = [row_id for row_id, receipt in self._handed_over.items() if receipt.is_published()]
        if done:
            now: datetime = self._clock()
            with self._db.begin() as session:
                session.exec(update(OutboxMessage).where(col(OutboxMessage.id).in_(done)).values(sent_at=now))
            for row_id in done:
                del self._handed_over[row_id]
            self.sent += len(done)
        return len(done)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                if self.run_once() == 0:
                    self._stop.wait(_IDLE_S)
            except CoveyServerError as exc:
                logger.debug("the outbox waits: %s", exc)
                self._stop.wait(0.5)
            except Exception:
                # The top of the thread: the outbox must go on after any fault.
                logger.exception("the outbox could not send")
                self._stop.wait(1.0)


class _Dropped:
    """The receipt of a row that is given up."""

    def is_published(self) -> bool:
        """Treated as done, so that it is not tried again."""
        return True


def _wait_for(condition: Callable[[], bool], *, timeout_s: float, stop: Event) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition() and time.monotonic() < deadline and not stop.is_set():
        time.sleep(0.002)
