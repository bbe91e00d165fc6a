"""Tables of the rollouts capability: rollouts, each device's part in one, and each device's desired state."""

from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import Column, UniqueConstraint
from sqlmodel import Field, SQLModel

from covey_server.clock import utc_now
from covey_server.db import JsonDict, UtcDateTime


class RolloutState(StrEnum):
    """Where a rollout is."""

    DRAFT = "draft"
    RUNNING = "running"
    PAUSED = "paused"  # by an operator
    HALTED = "halted"  # by a rule; the reason says which
    COMPLETED = "completed"
    CANCELLED = "cancelled"


class RolloutDeviceState(StrEnum):
    """Where one device is in a rollout."""

    PENDING = "pending"  # its phase has not begun
    SENT = "sent"  # desired state published, nothing heard yet
    ACTIVE = "active"  # the device works on it
    SUCCEEDED = "succeeded"  # committed after probation
    FAILED = "failed"  # rolled back or refused
    UNRESPONSIVE = "unresponsive"  # silent past the deadline: counts as a failure
    SKIPPED = "skipped"  # the rollout ended before its turn


class Rollout(SQLModel, table=True):
    """The staged delivery of one release."""

    __tablename__ = "rollouts"
    id: str = Field(primary_key=True)
    release_id: int = Field(foreign_key="releases.id", index=True)
    name: str = ""
    state: RolloutState = Field(default=RolloutState.DRAFT, index=True)
    reason: str = ""
    selector: dict[str, Any] = Field(
        default_factory=dict, sa_column=Column(JsonDict, nullable=False)
    )  # {"devices": [...]} or {"labels": {...}}
    phases: list[dict[str, Any]] = Field(
        default_factory=list, sa_column=Column(JsonDict, nullable=False)
    )  # [{"name","percent"|"count","max_failures"}]
    current_phase: int = 0
    probation_s: float = 600.0
    deadline_s: float = 3600.0  # a device without progress for longer has failed
    revert_on_halt: bool = True  # when halted, send every device that was reached back to what it served before
    created_by: str = ""
    created_at: datetime = Field(sa_type=UtcDateTime, default_factory=utc_now)
    started_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    finished_at: datetime | None = Field(default=None, sa_type=UtcDateTime)


class RolloutDevice(SQLModel, table=True):
    """One device's part in one rollout."""

    __tablename__ = "rollout_devices"
    __table_args__ = (UniqueConstraint("rollout_id", "device_id"),)
    id: int | None = Field(default=None, primary_key=True)
    rollout_id: str = Field(foreign_key="rollouts.id", index=True)
    device_id: str = Field(foreign_key="devices.id", index=True)
    phase: int = 0
    deployment_id: str = Field(index=True, unique=True)
    state: RolloutDeviceState = RolloutDeviceState.PENDING
    deployment_state: str = ""  # contract DeploymentState value, as last reported
    reason: str = ""
    variant: str = ""
    variant_reason: str = ""
    chunks_done: int = 0
    chunks_total: int = 0
    bytes_received: int = 0
    rollback_ms: float | None = None
    previous_release_id: int | None = Field(default=None, foreign_key="releases.id")  # what it served when its turn came
    revert_deployment_id: str = Field(default="", index=True)  # of the order back, once there is one
    reverted_at: datetime | None = Field(default=None, sa_type=UtcDateTime)  # when it reported to be back
    progressed_at: datetime | None = Field(default=None, sa_type=UtcDateTime)  # last report that showed a step forward
    sent_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    heard_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    finished_at: datetime | None = Field(default=None, sa_type=UtcDateTime)


class DesiredState(SQLModel, table=True):
    """What one device shall run; the source from which the retained message can be made again."""

    __tablename__ = "desired_states"
    device_id: str = Field(primary_key=True, foreign_key="devices.id")
    generation: int
    release_id: int | None = Field(default=None, foreign_key="releases.id")
    rollout_id: str | None = Field(default=None, foreign_key="rollouts.id")
    signed: bytes  # the Signed envelope exactly as published
    updated_at: datetime = Field(sa_type=UtcDateTime, default_factory=utc_now)
