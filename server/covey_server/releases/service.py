"""Releases: how one begins, is published, is withdrawn, is found.

    BUILDING --build done, gate passed--> PUBLISHED --withdraw--> WITHDRAWN
        \\--gate failed, build failed--> FAILED

Publishing signs: the manifest becomes a TUF target inside the same transaction as the rows, so a release that says PUBLISHED
can be verified by a device. If the commit fails after all, the target is left over and names a release that no rollout knows.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import msgspec
from sqlmodel import Session, col, func, select

from covey_contract.ids import parse_name
from covey_contract.messages import ReleaseRef, Scalar
from covey_contract.release import Bounds, Golden, Lineage, manifest_target
from covey_server import outbox
from covey_server.audit.service import record
from covey_server.errors import ConflictError, InvalidInputError, NotFoundError
from covey_server.parts import BlobStore, Repository
from covey_server.releases.manifest import assemble
from covey_server.releases.models import Artifact, Release, ReleaseBuild, ReleaseState, Variant
from covey_server.releases.requests import BuildRequest, request_to_row
from covey_server.releases.rules import Candidate, check_golden, judge_release


def begin_release(
    session: Session,
    model: str,
    *,
    source: str,
    created_by: str,
    lineage: Lineage,
    version: int | None = None,
    note: str = "",
    labels: Sequence[str] = (),
) -> Release:
    """Add a release in BUILDING. Raises InvalidIdError for a bad name, ConflictError for a version that exists."""
    parse_name(model, "model name")
    newest = session.exec(select(func.max(Release.version)).where(Release.model == model)).one() or 0
    if version is None:
        version = newest + 1
    elif session.exec(select(Release.id).where(Release.model == model, Release.version == version)).first() is not None:
        raise ConflictError(f"{model} version {version} exists already; the newest is {newest}")
    release = Release(
        model=model,
        version=version,
        source=source,
        run_id=lineage.run or None,
        labels=list(labels),
        note=note,
        lineage=msgspec.to_builtins(lineage),
        created_by=created_by,
    )
    session.add(release)
    session.flush()
    return release


def order_build(
    session: Session, model: str, request: BuildRequest, *, created_by: str, version: int | None = None, note: str = ""
) -> Release:
    """Add a release and the order to build it; a worker takes it up."""
    release = begin_release(
        session,
        model,
        source=request.lineage.source,
        created_by=created_by,
        lineage=request.lineage,
        version=version,
        note=note,
        labels=request.labels,
    )
    release.progress = "waiting for a worker"
    session.add(ReleaseBuild(release_id=id_of(release), request=request_to_row(request)))
    record(session, "release.ordered", actor=created_by, subject=name_of(release), detail={"source": request.source})
    tell(session, release)
    return release


def publish_release(
    session: Session,
    release: Release,
    candidates: Sequence[Candidate],
    *,
    golden: Golden,
    bounds: Bounds,
    custom: dict[str, Scalar],
    blobs: BlobStore,
    repository: Repository,
    now: datetime,
    actor: str,
) -> bool:
    """Give a BUILDING release its judged variants and publish it, or fail it if none was accepted. True if it was published."""
    if release.state is not ReleaseState.BUILDING:
        raise ConflictError(f"{name_of(release)} is {release.state.value}, only a release that is being built can be published")
    for candidate in candidates:
        session.add(_variant_row(release, candidate))
        _note_artifact(session, candidate.artifact, length=candidate.length, kind="artifact")
    reason = judge_release(candidates) or check_golden(golden)
    if reason:
        fail_release(session, release, reason)
        return False
    manifest = assemble(
        candidates,
        model=release.model,
        version=release.version,
        labels=release.labels,
        golden=golden,
        bounds=bounds,
        lineage=msgspec.convert(release.lineage, Lineage),
        custom=custom,
        now=now,
        blobs=blobs,
    )
    release.manifest_digest = blobs.put(manifest)
    _note_artifact(session, release.manifest_digest, length=len(manifest), kind="manifest")
    release.state = ReleaseState.PUBLISHED
    release.published_at = now
    release.reason = release.progress = ""
    record(session, "release.published", actor=actor, subject=name_of(release), detail={"manifest": release.manifest_digest})
    tell(session, release)
    session.flush()
    repository.add_target(manifest_target(release.model, release.version), manifest)
    return True


def fail_release(session: Session, release: Release, reason: str) -> None:
    """End a release that cannot be published."""
    release.state = ReleaseState.FAILED
    release.reason = reason
    release.progress = ""
    record(session, "release.failed", actor="system", subject=name_of(release), detail={"reason": reason})
    tell(session, release)


def withdraw_release(session: Session, release_id: int, *, repository: Repository, actor: str, reason: str = "") -> Release:
    """Stop a release: no rollout may ship it, running ones halt, its target leaves the repository. Devices that serve it go on."""
    release = get_release(session, release_id)
    if release.state is not ReleaseState.PUBLISHED:
        raise ConflictError(f"{name_of(release)} is {release.state.value}, only a published release can be withdrawn")
    release.state = ReleaseState.WITHDRAWN
    release.reason = reason
    record(session, "release.withdrawn", actor=actor, subject=name_of(release), detail={"reason": reason})
    tell(session, release)
    session.flush()
    target = manifest_target(release.model, release.version)
    try:
        repository.remove_target(target)
    except NotFoundError:
        record(session, "release.target_missing", actor="system", subject=target)  # what was wanted holds already
    return release


def get_release(session: Session, release_id: int) -> Release:
    """One release. Raises NotFoundError."""
    release = session.get(Release, release_id)
    if release is None:
        raise NotFoundError("release", release_id)
    return release


def find_release(session: Session, model: str, version: int) -> Release | None:
    """One release by its name."""
    return session.exec(select(Release).where(Release.model == model, Release.version == version)).first()


def list_releases(
    session: Session, *, model: str | None = None, state: ReleaseState | None = None, before: int | None = None, limit: int = 50
) -> list[Release]:
    """Releases, the newest first; `before` is the id behind which to go on."""
    query = select(Release).order_by(col(Release.id).desc()).limit(limit)
    if model is not None:
        query = query.where(Release.model == model)
    if state is not None:
        query = query.where(Release.state == state)
    if before is not None:
        query = query.where(col(Release.id) < before)
    return list(session.exec(query))


def list_variants(session: Session, release_ids: Sequence[int]) -> dict[int, list[Variant]]:
    """The variants of several releases, each release's in the order in which they were made."""
    found: dict[int, list[Variant]] = {release_id: [] for release_id in release_ids}
    for variant in session.exec(select(Variant).where(col(Variant.release_id).in_(release_ids)).order_by(col(Variant.id))):
        found[variant.release_id].append(variant)
    return found


def shippable_ref(release: Release) -> ReleaseRef:
    """The release as an order names it. Raises ConflictError unless it is published."""
    if release.state is not ReleaseState.PUBLISHED:
        raise ConflictError(f"{name_of(release)} is {release.state.value}; only a published release can be shipped")
    return ReleaseRef(model=release.model, version=release.version, manifest=release.manifest_digest)


def published_length(session: Session, digest: str) -> int | None:
    """The length of an artifact that some published release holds; None for any other digest."""
    query = (
        select(Variant.length)
        .join(Release, col(Release.id) == Variant.release_id)
        .where(Variant.artifact == digest, col(Variant.accepted).is_(True), Release.state == ReleaseState.PUBLISHED)
    )
    return session.exec(query).first()


def find_artifact(session: Session, digest: str) -> Artifact:
    """One file that releases refer to. Raises NotFoundError."""
    artifact = session.get(Artifact, digest)
    if artifact is None:
        raise NotFoundError("artifact", digest)
    return artifact


def tell(session: Session, release: Release) -> None:
    """Show consoles a release as it is now."""
    data: dict[str, Any] = {"id": id_of(release), "model": release.model, "version": release.version, "state": release.state.value}
    outbox.emit(session, "release.changed", data | {"progress": release.progress, "reason": release.reason})


def name_of(release: Release) -> str:
    """A release as people name it: model/version."""
    return f"{release.model}/{release.version}"


def id_of(release: Release) -> int:
    """The id of a release that was flushed."""
    if release.id is None:
        raise InvalidInputError(f"{name_of(release)} is not in the database")
    return release.id


def _variant_row(release: Release, candidate: Candidate) -> Variant:
    row = Variant(
        release_id=id_of(release),
        name=candidate.name,
        precision=candidate.precision,
        runtime=candidate.runtime.value,
        min_runtime_version=candidate.min_runtime_version,
        artifact=candidate.artifact,
        length=candidate.length,
        accepted=candidate.accepted,
        reason=candidate.reason,
        size_ratio=candidate.size_ratio,
    )
    if candidate.quality is not None:
        row.accuracy = candidate.quality.accuracy
        row.accuracy_drop = candidate.quality.accuracy_drop
        row.relative_error = candidate.quality.relative_error
        row.latency_ms = candidate.quality.latency_ms
    return row


def _note_artifact(session: Session, digest: str, *, length: int, kind: str) -> None:
    if digest and session.get(Artifact, digest) is None:
        session.add(Artifact(digest=digest, length=length, kind=kind))
        session.flush()  # two variants of a release may be the very same file
