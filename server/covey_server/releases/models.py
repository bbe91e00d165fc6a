"""Tables of the releases capability: artifacts, releases and their variants."""

from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import Column, UniqueConstraint
from sqlmodel import Field, SQLModel

from covey_server.clock import utc_now
from covey_server.db import JsonDict, UtcDateTime


class ReleaseState(StrEnum):
    """How far a release has come."""

    BUILDING = "building"  # being quantized and measured
    FAILED = "failed"  # no variant within its budget, or the model could not be converted
    PUBLISHED = "published"  # signed; rollouts may ship it
    WITHDRAWN = "withdrawn"  # no new rollout may ship it


class Artifact(SQLModel, table=True):
    """One file in the content-addressed store."""

    __tablename__ = "artifacts"
    digest: str = Field(primary_key=True)  # sha256
    length: int
    kind: str  # artifact, manifest, checkpoint, task
    created_at: datetime = Field(sa_type=UtcDateTime, default_factory=utc_now)


class Release(SQLModel, table=True):
    """One model version as a set of variants."""

    __tablename__ = "releases"
    __table_args__ = (UniqueConstraint("model", "version"),)
    id: int | None = Field(default=None, primary_key=True)
    model: str = Field(index=True)
    version: int
    state: ReleaseState = ReleaseState.BUILDING
    reason: str = ""
    source: str = "import"  # run or import
    run_id: str | None = Field(default=None, index=True)
    manifest_digest: str = ""  # once published
    labels: list[str] = Field(default_factory=list, sa_column=Column(JsonDict, nullable=False))
    lineage: dict[str, Any] = Field(default_factory=dict, sa_column=Column(JsonDict, nullable=False))
    progress: str = ""  # what the build is doing now
    note: str = ""
    created_by: str = ""
    created_at: datetime = Field(sa_type=UtcDateTime, default_factory=utc_now)
    published_at: datetime | None = Field(default=None, sa_type=UtcDateTime)


class Variant(SQLModel, table=True):
    """One artifact of a release, accepted into it or refused, with what was measured."""

    __tablename__ = "variants"
    __table_args__ = (UniqueConstraint("release_id", "name"),)
    id: int | None = Field(default=None, primary_key=True)
    release_id: int = Field(index=True, foreign_key="releases.id")
    name: str
    precision: str
    runtime: str
    min_runtime_version: str = ""
    artifact: str = ""  # digest; empty when it could not be made
    length: int = 0
    accepted: bool = True
    reason: str = ""  # why refused, or what the conversion chose
    accuracy: float | None = None
    accuracy_drop: float | None = None
    relative_error: float | None = None
    latency_ms: float | None = None
    size_ratio: float | None = None  # float32 artifact of the same format / this one


class DeltaRowState(StrEnum):
    """Where a delta is."""

    MAKING = "making"  # ordered; a worker makes it
    READY = "ready"
    NONE = "none"  # there will be none; the reason says why


class Delta(SQLModel, table=True):
    """A binary difference between two artifacts of one model, made once for all devices."""

    __tablename__ = "deltas"
    base: str = Field(primary_key=True)  # digest of the artifact that a device has
    target: str = Field(primary_key=True, index=True)  # digest of the one that it wants
    state: DeltaRowState = Field(default=DeltaRowState.MAKING, index=True)
    digest: str = Field(default="", index=True)  # of the patch, in the blob store
    length: int = 0
    attempts: int = 0
    reason: str = ""
    created_at: datetime = Field(sa_type=UtcDateTime, default_factory=utc_now)


class ReleaseBuild(SQLModel, table=True):
    """The order to build one release, and who works on it; a row, so that it outlives the worker."""

    __tablename__ = "release_builds"
    release_id: int = Field(primary_key=True, foreign_key="releases.id")
    request: dict[str, Any] = Field(default_factory=dict, sa_column=Column(JsonDict, nullable=False))  # releases/requests.py BuildRequest
    attempts: int = 0  # how often a worker took it
    worker: str = ""  # who has it; empty: nobody
    heartbeat_at: datetime | None = Field(default=None, sa_type=UtcDateTime)  # of the worker that has it; a stale one is dead
    created_at: datetime = Field(sa_type=UtcDateTime, default_factory=utc_now)
    finished_at: datetime | None = Field(default=None, sa_type=UtcDateTime, index=True)
