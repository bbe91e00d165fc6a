"""The table through which one process's counters and heartbeat reach another's /metrics."""

from datetime import datetime

from sqlmodel import Field, SQLModel

from covey_server.clock import utc_now
from covey_server.db import UtcDateTime


class Counter(SQLModel, table=True):
    """One counter of one process, as it last stood. It starts again at 0 with the process, as Prometheus expects."""

    __tablename__ = "counters"
    process: str = Field(primary_key=True)
    name: str = Field(primary_key=True)
    label: str = Field(primary_key=True, default="")
    value: float = 0.0
    updated_at: datetime = Field(sa_type=UtcDateTime, default_factory=utc_now)
