"""The outbox: what a transaction wants to say is a row of that transaction, and is sent after it has committed.

`publish` queues an MQTT message; the worker's publisher sends it at least once, in order, and receivers are idempotent.
`emit` queues a live event for consoles, which read them by id (Last-Event-ID), so a reconnect misses nothing.
"""

import json
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Column, bindparam, delete, insert
from sqlmodel import Field, Session, SQLModel, col, select

from covey_contract.errors import PayloadTooLargeError
from covey_contract.limits import MAX_PAYLOAD_BYTES
from covey_server.clock import utc_now
from covey_server.db import JsonDict, UtcDateTime


class OutboxMessage(SQLModel, table=True):
    """An MQTT message that waits to be sent, or was."""

    __tablename__ = "outbox"
    id: int | None = Field(default=None, primary_key=True)
    created_at: datetime = Field(sa_type=UtcDateTime, default_factory=utc_now)
    topic: str
    payload: bytes
    retain: bool = False
    sent_at: datetime | None = Field(default=None, sa_type=UtcDateTime, index=True)


class LiveEvent(SQLModel, table=True):
    """Something that consoles show at once."""

    __tablename__ = "live_events"
    id: int | None = Field(default=None, primary_key=True)
    at: datetime = Field(sa_type=UtcDateTime, default_factory=utc_now, index=True)
    name: str  # capability.what, as rollout.changed
    data: dict[str, Any] = Field(default_factory=dict, sa_column=Column(JsonDict, nullable=False))


_TABLE = OutboxMessage.metadata.tables["outbox"]
_DELETE_WAITING = delete(_TABLE).where(
    _TABLE.c.sent_at.is_(None), _TABLE.c.topic == bindparam("for_topic"), _TABLE.c.id < bindparam("newest")
)


def publish(session: Session, topic: str, payload: bytes, *, retain: bool = False) -> None:
    """Queue one QoS 1 message. Raises PayloadTooLargeError rather than queue one that the broker would never take."""
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise PayloadTooLargeError(topic, len(payload), MAX_PAYLOAD_BYTES)
    session.add(OutboxMessage(topic=topic, payload=payload, retain=retain))


def publish_latest(session: Session, topic: str, payload: bytes, *, retain: bool = False) -> None:
    """Queue one message in the place of those for this topic that are not sent yet: only the newest matters.

    The new row is added before the old ones go, so that no id is used again: a publisher that is sending an old row just now
    must not mark the new one as sent.
    """
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise PayloadTooLargeError(topic, len(payload), MAX_PAYLOAD_BYTES)
    if session.new:
        session.flush()  # rows of this topic that were queued before must get their ids first
    # Past the unit of work: every batch of readings comes by here.
    connection = session.connection()
    values = {"created_at": utc_now(), "topic": topic, "payload": payload, "retain": retain}
    key = connection.execute(insert(_TABLE), values).inserted_primary_key
    assert key is not None  # noqa: S101 - one row was inserted, and its key is what the database gave it
    connection.execute(_DELETE_WAITING, {"for_topic": topic, "newest": key[0]})


def emit(session: Session, name: str, data: dict[str, Any]) -> None:
    """Queue one live event; `data` must be small and JSON."""
    json.dumps(data)
    session.add(LiveEvent(name=name, data=data))


def unsent(session: Session, *, limit: int = 200) -> list[OutboxMessage]:
    """The oldest messages not sent yet, in order."""
    query = select(OutboxMessage).where(col(OutboxMessage.sent_at).is_(None)).order_by(col(OutboxMessage.id)).limit(limit)
    return list(session.exec(query))


def events_after(session: Session, last_id: int, *, limit: int = 200) -> list[LiveEvent]:
    """Live events newer than `last_id`, in order."""
    query = select(LiveEvent).where(col(LiveEvent.id) > last_id).order_by(col(LiveEvent.id)).limit(limit)
    return list(session.exec(query))


def newest_event_id(session: Session) -> int:
    """The id of the newest live event, 0 if there is none."""
    newest = session.exec(select(LiveEvent.id).order_by(col(LiveEvent.id).desc()).limit(1)).first()
    return newest or 0


def prune(session: Session, *, now: datetime, keep: timedelta) -> None:
    """Forget messages sent, and events told, longer ago than `keep`."""
    before = now - keep
    session.exec(delete(OutboxMessage).where(col(OutboxMessage.sent_at) < before))
    session.exec(delete(LiveEvent).where(col(LiveEvent.at) < before))
