"""Tables of the telemetry capability: readings, and how far each device's stream has been committed."""

from datetime import datetime
from typing import Any

from sqlalchemy import Column, Index, UniqueConstraint
from sqlmodel import Field, SQLModel

from covey_server.clock import utc_now
from covey_server.db import JsonDict, UtcDateTime


class ReadingRow(SQLModel, table=True):
    """One reading, filed at its own time however late it came."""

    __tablename__ = "readings"
    __table_args__ = (UniqueConstraint("device_id", "epoch", "sequence"), Index("ix_readings_device_kind_at", "device_id", "kind", "at"))
    id: int | None = Field(default=None, primary_key=True)
    device_id: str
    epoch: str
    sequence: int
    at: datetime = Field(sa_type=UtcDateTime, index=True)
    received_at: datetime = Field(sa_type=UtcDateTime, default_factory=utc_now)
    kind: str
    priority: int = 2
    values: dict[str, Any] = Field(default_factory=dict, sa_column=Column(JsonDict, nullable=False))


class ReadingStream(SQLModel, table=True):
    """What is known of one epoch of one device's readings."""

    __tablename__ = "reading_streams"
    device_id: str = Field(primary_key=True)
    epoch: str = Field(primary_key=True)
    upto: int = -1  # committed and acknowledged up to and including
    stored: int = 0
    duplicates: int = 0  # came again; stored once
    lost: dict[str, int] = Field(default_factory=dict, sa_column=Column(JsonDict, nullable=False))  # priority -> dropped on the device
    updated_at: datetime = Field(sa_type=UtcDateTime, default_factory=utc_now)
