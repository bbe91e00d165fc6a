"""Tables of the triggers capability: alerts that operators see."""

from datetime import datetime
from enum import StrEnum

from sqlmodel import Field, SQLModel

from covey_server.clock import utc_now
from covey_server.db import UtcDateTime


class Severity(StrEnum):
    """How urgent an alert is."""

    INFO = "info"
    WARNING = "warning"
    CRITICAL = "critical"


class Alert(SQLModel, table=True):
    """Something that an operator should know."""

    __tablename__ = "alerts"
    id: int | None = Field(default=None, primary_key=True)
    at: datetime = Field(sa_type=UtcDateTime, default_factory=utc_now, index=True)
    severity: Severity = Severity.WARNING
    what: str  # short name: rollout_halted, device_rolled_back, ...
    detail: str = ""
    device_id: str | None = Field(default=None, index=True)
    subject: str = ""  # rollout, run or release that it is about
    acknowledged_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    acknowledged_by: str = ""
