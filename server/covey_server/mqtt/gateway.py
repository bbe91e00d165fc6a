"""MQTT in: a bounded queue between the link's thread and the one thread that routes, commits and acknowledges.

- A message is acknowledged to the broker only after the transaction that holds its rows has committed; killed in between, it
  comes again, and handlers are idempotent.
- Messages that wait together share a transaction, which is what makes readings cheap.
- When the database does not answer, nothing is acknowledged and the same messages are tried again; when one message makes a
  handler fail (a fault of ours), it alone is logged, counted and dropped, so that it cannot stop all the others.
"""

import logging
import queue
from collections.abc import Callable, Sequence
from threading import Event, Thread
from typing import Protocol

from sqlalchemy.exc import OperationalError

from covey_server.broker.embedded import MAX_ACK_PENDING
from covey_server.mqtt.link import Incoming
from covey_server.mqtt.router import Router

logger = logging.getLogger(__name__)

QUEUE_LENGTH = 6 * MAX_ACK_PENDING  # a subscription for each channel; the broker sends no more than this without acknowledgement
_MAX_BATCH = 200  # messages in one transaction
_HAND_OVER_S = 20.0  # shorter than the keepalive's grace, so that a full queue slows the broker down before it drops us
_RETRY_S = (0.2, 1.0, 5.0)


class Acknowledger(Protocol):
    """What acknowledges to the broker."""

    def acknowledge(self, message: Incoming) -> None:
        """Tell the broker that a message is dealt with."""
        ...


class Gateway:
    """Takes messages from the link and feeds the router."""

    def __init__(self, router: Router, *, length: int = QUEUE_LENGTH, sleep: Callable[[float], None] | None = None) -> None:
        self._router = router
        self._queue: queue.Queue[Incoming] = queue.Queue(maxsize=length)
        self._stop = Event()
        self._sleep = sleep or self._stop.wait
        self._thread: Thread | None = None
        self.overflowed = 0

    @property
    def waiting(self) -> int:
        """Messages that wait, for /metrics."""
        return self._queue.qsize()

    def take(self, message: Incoming) -> None:
        """Put one message in the queue; called by the link's thread. A full queue makes it wait, then leave it unacknowledged."""
        try:
            self._queue.put(message, timeout=_HAND_OVER_S)
        except queue.Full:
            self.overflowed += 1
            self._router.refuse("overflow", message.topic, "the server cannot keep up; the broker sends it again")

    def start(self, link: Acknowledger) -> None:
        """Route in a thread of its own until `stop`."""
        self._thread = Thread(target=self._run, args=(link,), name="gateway", daemon=True)
        self._thread.start()

    def stop(self, *, timeout_s: float = 10.0) -> None:
        """Finish the transaction that is open and end the thread."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout_s)

    def pump(self, link: Acknowledger, *, timeout_s: float = 0.5) -> int:
        """Handle what waits, up to one batch; how many messages that were."""
        batch = self._next_batch(timeout_s)
        if batch and self._route(batch):
            for message in batch:
                link.acknowledge(message)
        return len(batch)

    def _run(self, link: Acknowledger) -> None:
        while not self._stop.is_set():
            try:
                self.pump(link)
            except Exception:
                # The top of the thread: whatever went wrong, messages must go on being handled.
                logger.exception("the gateway could not handle a batch of messages")
                self._sleep(_RETRY_S[0])

    def _next_batch(self, timeout_s: float) -> list[Incoming]:
        batch: list[Incoming] = []
        try:
            batch.append(self._queue.get(timeout=timeout_s))
            while len(batch) < _MAX_BATCH:
                batch.append(self._queue.get_nowait())
        except queue.Empty:
            pass
        return batch

    def _route(self, batch: Sequence[Incoming]) -> bool:
        """Whether the batch was dealt with; False only when the server stops while the database is away."""
        attempt = 0
        while not self._stop.is_set():
            try:
                self._router.route_many([(message.topic, message.payload) for message in batch])
                return True
            except OperationalError as exc:  # locked, full or gone: a matter of waiting
                logger.warning("the database does not take %d messages, trying again: %s", len(batch), exc.orig)
                self._sleep(_RETRY_S[min(attempt, len(_RETRY_S) - 1)])
                attempt += 1
            except Exception:
                # A fault in a handler: find the message that causes it, and lose only that one.
                if len(batch) == 1:
                    logger.exception("a handler failed on %.200r; the message is dropped", batch[0].topic)
                    self._router.refused["handler_failed"] += 1
                    return True
                outcomes = [self._route([message]) for message in batch]
                return all(outcomes)
        return False
