"""The privacy ledger's table. Rows are only ever added; a trigger in the database refuses anything else."""

from datetime import datetime
from enum import StrEnum

from sqlmodel import Field, SQLModel

from covey_server.clock import utc_now
from covey_server.db import UtcDateTime


class PrivacyEventKind(StrEnum):
    """What an event does to what was spent."""

    CHARGE = "charge"  # appended before anything is asked of a participant
    VOID = "void"  # the participant said that it did not train; silence never makes one


class PrivacyEvent(SQLModel, table=True):
    """One mechanism applied to one participant's dataset. Epsilon is recomputed from these, never stored."""

    __tablename__ = "privacy_events"
    id: int | None = Field(default=None, primary_key=True)
    at: datetime = Field(sa_type=UtcDateTime, default_factory=utc_now)
    kind: PrivacyEventKind = PrivacyEventKind.CHARGE
    device_id: str = Field(index=True)  # the participant
    dataset: str = Field(index=True)
    run_id: str = Field(index=True)
    round: int
    level: str  # contract PrivacyPlan.level
    noise_multiplier: float
    clipping_norm: float
    sample_rate: float
    steps: int
    delta: float
    voids: int | None = Field(default=None, unique=True)  # the charge that a VOID takes back, once
    reason: str = ""
