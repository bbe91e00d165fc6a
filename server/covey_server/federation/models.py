"""Tables of the federation capability: tasks, runs, their participants, rounds and contributions."""

from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import Column, UniqueConstraint
from sqlmodel import Field, SQLModel

from covey_server.clock import utc_now
from covey_server.db import JsonDict, UtcDateTime


class RunState(StrEnum):
    """Where a run is."""

    PLANNED = "planned"
    INVITING = "inviting"  # participants were asked; waiting for enough to accept
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    STOPPED = "stopped"  # by an operator


class ParticipantState(StrEnum):
    """Where one participant is in a run."""

    INVITED = "invited"
    ACCEPTED = "accepted"
    REFUSED = "refused"  # by its own policy or budget; the reason says which


class ContributionState(StrEnum):
    """What came of asking one participant in one round."""

    SENT = "sent"  # charged to the ledger, no answer yet
    RECEIVED = "received"
    REFUSED = "refused"  # it did not train; the charge is voided
    MISSING = "missing"  # no answer in time: the charge stands


class Task(SQLModel, table=True):
    """What is trained: one bundle of model code, by digest."""

    __tablename__ = "tasks"
    __table_args__ = (UniqueConstraint("name", "digest"),)
    id: int | None = Field(default=None, primary_key=True)
    name: str = Field(index=True)
    digest: str = Field(index=True)
    purpose: str = ""
    dataset: str = ""
    labels: list[str] = Field(default_factory=list, sa_column=Column(JsonDict, nullable=False))
    created_by: str = ""
    created_at: datetime = Field(sa_type=UtcDateTime, default_factory=utc_now)


class Run(SQLModel, table=True):
    """One execution of a task."""

    __tablename__ = "runs"
    id: str = Field(primary_key=True)
    task_id: int = Field(foreign_key="tasks.id", index=True)
    model: str = ""  # name of the model that its releases carry
    state: RunState = Field(default=RunState.PLANNED, index=True)
    reason: str = ""
    rounds_total: int = 1
    rounds_done: int = 0
    plan: dict[str, Any] = Field(default_factory=dict, sa_column=Column(JsonDict, nullable=False))  # contract PrivacyPlan
    hyperparameters: dict[str, Any] = Field(default_factory=dict, sa_column=Column(JsonDict, nullable=False))
    predicted_epsilon: float | None = None  # of one participant after all rounds, as planned
    min_participants: int = 2
    invite_deadline: datetime | None = Field(default=None, sa_type=UtcDateTime)
    held_out: str = ""  # path of the server's evaluation data (npz with x and y)
    flower_run_id: str = ""
    checkpoint: str = ""  # digest of the newest aggregated weights
    references: dict[str, Any] = Field(default_factory=dict, sa_column=Column(JsonDict, nullable=False))  # name -> accuracy per round
    created_by: str = ""
    created_at: datetime = Field(sa_type=UtcDateTime, default_factory=utc_now)
    started_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    finished_at: datetime | None = Field(default=None, sa_type=UtcDateTime)


class RunParticipant(SQLModel, table=True):
    """One participant's part in one run."""

    __tablename__ = "run_participants"
    run_id: str = Field(primary_key=True, foreign_key="runs.id")
    device_id: str = Field(primary_key=True, foreign_key="devices.id")
    command_id: str = Field(index=True)
    state: ParticipantState = ParticipantState.INVITED
    reason: str = ""
    invited_at: datetime = Field(sa_type=UtcDateTime, default_factory=utc_now)
    replied_at: datetime | None = Field(default=None, sa_type=UtcDateTime)


class Round(SQLModel, table=True):
    """One step of a run."""

    __tablename__ = "rounds"
    run_id: str = Field(primary_key=True, foreign_key="runs.id")
    number: int = Field(primary_key=True)  # from 1; 0 is the untrained model
    started_at: datetime = Field(sa_type=UtcDateTime, default_factory=utc_now)
    finished_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    sampled: int = 0
    contributors: int = 0
    accuracy: float | None = None
    loss: float | None = None
    checkpoint: str = ""
    reason: str = ""


class Contribution(SQLModel, table=True):
    """One participant in one round."""

    __tablename__ = "contributions"
    run_id: str = Field(primary_key=True, foreign_key="runs.id")
    round: int = Field(primary_key=True)
    device_id: str = Field(primary_key=True, foreign_key="devices.id")
    state: ContributionState = ContributionState.SENT
    reason: str = ""
    seconds: float | None = None
    at: datetime = Field(sa_type=UtcDateTime, default_factory=utc_now)
