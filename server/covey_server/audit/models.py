"""The audit table: who did what to what. Rows are only ever added."""

from datetime import datetime
from typing import Any

from sqlalchemy import Column
from sqlmodel import Field, SQLModel

from covey_server.clock import utc_now
from covey_server.db import JsonDict, UtcDateTime


class AuditEvent(SQLModel, table=True):
    """One act of a user, token or device."""

    __tablename__ = "audit_events"
    id: int | None = Field(default=None, primary_key=True)
    at: datetime = Field(sa_type=UtcDateTime, default_factory=utc_now, index=True)
    actor: str  # user:alice, token:ci, device:pi-1, system
    action: str = Field(index=True)  # device.invited, rollout.started, ...
    subject: str = ""
    detail: dict[str, Any] = Field(default_factory=dict, sa_column=Column(JsonDict, nullable=False))
