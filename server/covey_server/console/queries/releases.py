"""Releases and their variants."""

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import func
from sqlmodel import Session, col, select

from covey_server.devices.models import Device
from covey_server.errors import NotFoundError
from covey_server.releases.models import Release, Variant
from covey_server.rollouts.models import Rollout

PAGE_SIZE = 30


@dataclass(frozen=True, slots=True)
class VariantView:
    """One variant, accepted or refused."""

    name: str
    precision: str
    runtime: str
    min_runtime_version: str
    artifact: str
    length: int
    accepted: bool
    reason: str
    accuracy: float | None
    accuracy_drop: float | None
    relative_error: float | None
    latency_ms: float | None
    size_ratio: float | None
    devices: int  # that serve it now


@dataclass(frozen=True, slots=True)
class ReleaseLine:
    """One release in a list."""

    id: int
    title: str
    state: str
    reason: str
    source: str
    run_id: str | None
    accepted: int
    refused: int
    smallest: int | None  # bytes
    accuracy: float | None  # of the best variant
    created_at: datetime
    devices: int


@dataclass(frozen=True, slots=True)
class ReleasePage:
    """One page of the list, newest first."""

    lines: tuple[ReleaseLine, ...]
    next: int  # id behind which the next page begins, 0 at the end


@dataclass(frozen=True, slots=True)
class RolloutRef:
    """A rollout that ships the release."""

    id: str
    name: str
    state: str


@dataclass(frozen=True, slots=True)
class LineageView:
    """Where the weights come from."""

    source: str
    run: str
    rounds: int
    participants: int
    epsilon: tuple[tuple[str, float], ...]  # as signed into the manifest
    delta: float
    note: str


@dataclass(frozen=True, slots=True)
class ReleaseView:
    """A release's page."""

    line: ReleaseLine
    progress: str
    manifest_digest: str
    labels: tuple[str, ...]
    note: str
    created_by: str
    published_at: datetime | None
    variants: tuple[VariantView, ...]
    lineage: LineageView
    rollouts: tuple[RolloutRef, ...]


def list_releases(session: Session, *, before: int = 0) -> ReleasePage:
    """Releases, newest first."""
    query = select(Release).order_by(col(Release.id).desc()).limit(PAGE_SIZE + 1)
    rows = session.exec(query.where(col(Release.id) < before) if before else query).all()
    lines = tuple(_line(session, row, _variants(session, row)) for row in rows[:PAGE_SIZE])
    return ReleasePage(lines, lines[-1].id if len(rows) > PAGE_SIZE else 0)


def get_release(session: Session, release_id: int) -> ReleaseView:
    """One release. Raises NotFoundError."""
    row = session.get(Release, release_id)
    if row is None:
        raise NotFoundError("release", release_id)
    variants = _variants(session, row)
    rollouts = session.exec(select(Rollout).where(Rollout.release_id == release_id).order_by(col(Rollout.created_at).desc())).all()
    return ReleaseView(
        line=_line(session, row, variants),
        progress=row.progress,
        manifest_digest=row.manifest_digest,
        labels=tuple(row.labels),
        note=row.note,
        created_by=row.created_by,
        published_at=row.published_at,
        variants=variants,
        lineage=_lineage(row),
        rollouts=tuple(RolloutRef(each.id, each.name or each.id, each.state.value) for each in rollouts),
    )


def title_of(row: Release | None) -> str:
    """A release as people call it."""
    return f"{row.model} v{row.version}" if row else "a release that is gone"


def _line(session: Session, row: Release, variants: tuple[VariantView, ...]) -> ReleaseLine:
    accepted = [variant for variant in variants if variant.accepted]
    return ReleaseLine(
        id=row.id or 0,
        title=title_of(row),
        state=row.state.value,
        reason=row.reason,
        source=row.source,
        run_id=row.run_id,
        accepted=len(accepted),
        refused=len(variants) - len(accepted),
        smallest=min((variant.length for variant in accepted if variant.length), default=None),
        accuracy=max((variant.accuracy for variant in accepted if variant.accuracy is not None), default=None),
        created_at=row.created_at,
        devices=sum(_serving(session, row).values()),
    )


def _variants(session: Session, release: Release) -> tuple[VariantView, ...]:
    rows = session.exec(select(Variant).where(Variant.release_id == release.id).order_by(col(Variant.id)))
    serving = _serving(session, release)
    return tuple(
        VariantView(
            name=row.name,
            precision=row.precision,
            runtime=row.runtime,
            min_runtime_version=row.min_runtime_version,
            artifact=row.artifact,
            length=row.length,
            accepted=row.accepted,
            reason=row.reason,
            accuracy=row.accuracy,
            accuracy_drop=row.accuracy_drop,
            relative_error=row.relative_error,
            latency_ms=row.latency_ms,
            size_ratio=row.size_ratio,
            devices=serving.get(row.name, 0),
        )
        for row in rows
    )


def _serving(session: Session, release: Release) -> dict[str, int]:
    query = (
        select(Device.serving_variant, func.count())
        .where(Device.serving_model == release.model, Device.serving_version == release.version)
        .group_by(Device.serving_variant)
    )
    return dict(session.exec(query).all())


def _lineage(row: Release) -> LineageView:
    told = row.lineage
    epsilon = told.get("epsilon") if isinstance(told.get("epsilon"), dict) else {}
    return LineageView(
        source=str(told.get("source", row.source)),
        run=str(told.get("run") or row.run_id or ""),
        rounds=int(told.get("rounds") or 0),
        participants=int(told.get("participants") or 0),
        epsilon=tuple(sorted((str(name), float(value)) for name, value in (epsilon or {}).items())),
        delta=float(told.get("delta") or 0.0),
        note=str(told.get("note") or ""),
    )
