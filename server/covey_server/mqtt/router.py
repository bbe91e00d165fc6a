"""From a topic and bytes to a handler: parse, validate, count refusals, run the handler in one transaction.

The order is: topic -> contract message -> handler -> rows and outbox in one transaction -> commit. Whatever is too big,
malformed, stale or about another device is counted by reason, logged once as WARNING and then as DEBUG, and dropped: bad
input never stops the worker. Handlers are registered per channel by `app.py`.
"""

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from sqlmodel import Session

from covey_contract import codec
from covey_contract.errors import ContractError
from covey_contract.ids import DeviceId
from covey_contract.messages import ReadingBatch, Reply, Reported, Status
from covey_contract.topics import Channel, parse_topic
from covey_server.errors import CoveyServerError
from covey_server.parts import Parts

logger = logging.getLogger(__name__)

Handler = Callable[[Parts, Session, DeviceId, Any], None]

_DECODERS: dict[Channel, Callable[[bytes], Any]] = {
    Channel.STATUS: lambda payload: codec.decode(payload, Status),
    Channel.REPORTED: lambda payload: codec.decode(payload, Reported),
    Channel.READINGS: lambda payload: codec.decode(payload, ReadingBatch),
    Channel.REPLY: lambda payload: codec.decode(payload, Reply),
    Channel.WANT: codec.decode_want,
}


@dataclass
class Router:
    """Routes incoming messages; `refused` counts by reason and `handled` by channel, for /metrics."""

    parts: Parts
    handlers: dict[Channel, Handler] = field(default_factory=dict)
    refused: Counter[str] = field(default_factory=Counter)
    handled: Counter[str] = field(default_factory=Counter)
    _warned: set[tuple[str, str]] = field(default_factory=set)

    def register(self, channel: Channel, handler: Handler) -> None:
        """Let `handler` take every valid message of one channel."""
        self.handlers[channel] = handler

    def route(self, topic: str, payload: bytes) -> bool:
        """Handle one message; True if it was handled, False if it was refused and counted."""
        try:
            parsed = parse_topic(topic)
            handler = self.handlers.get(parsed.channel)
            if handler is None or parsed.device is None:
                self._refuse("unexpected_channel", topic, "no handler for this channel")
                return False
            message = _DECODERS[parsed.channel](payload)
            with self.parts.db.begin() as session:
                handler(self.parts, session, parsed.device, message)
        except ContractError as exc:
            self._refuse(exc.reason, topic, str(exc))
            return False
        except CoveyServerError as exc:
            self._refuse(type(exc).__name__, topic, str(exc))
            return False
        self.handled[parsed.channel.value] += 1
        return True

    def _refuse(self, reason: str, topic: str, detail: str) -> None:
        self.refused[reason] += 1
        key = (reason, topic[:200])
        level = logging.DEBUG if key in self._warned else logging.WARNING
        if len(self._warned) < 10_000:  # a flood of different topics must not fill the memory
            self._warned.add(key)
        logger.log(level, "message refused on %.200s: %s (%s)", topic, detail, reason)
