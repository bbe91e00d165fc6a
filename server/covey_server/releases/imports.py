"""Releases whose artifacts were made elsewhere, and those that begin with an uploaded model or a run's weights.

An import may come without measurements; that needs an explicit word of the caller and is written into the audit record, because
nothing but the golden inputs then stands between a bad model and the fleet.

Files go into the store first (`store_file`, `store_data`), outside of any transaction: hashing 200 MB must not hold up the
database. What no release comes to name stays there unused.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

from sqlmodel import Session

from covey_contract.release import Lineage
from covey_server.audit.service import record
from covey_server.errors import InvalidInputError, RefusedError
from covey_server.parts import BlobStore, Repository
from covey_server.releases.models import Release
from covey_server.releases.requests import BuildOptions, BuildRequest, ImportedVariant, ImportSpec
from covey_server.releases.rules import Candidate, check_golden, judge_variant
from covey_server.releases.service import begin_release, name_of, order_build, publish_release


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file in the blob store."""

    digest: str
    length: int


@dataclass(frozen=True, slots=True)
class TrainedModel:
    """What a run leaves behind to make a release of."""

    run: str
    model: str  # name of the model
    checkpoint: str  # digest of the state dict in safetensors
    task: str  # digest of the task's Python file with build_model()
    labels: tuple[str, ...]
    lineage: Lineage  # with epsilon per participant, as the ledger gives it


def store_file(path: Path, blobs: BlobStore) -> StoredFile:
    """Put a file into the store. Raises InvalidInputError for an empty or missing one."""
    if not path.is_file() or path.stat().st_size == 0:
        raise InvalidInputError(f"{path.name} is missing or empty")
    return StoredFile(*blobs.put_file(path))


def store_data(path: Path, blobs: BlobStore) -> str:
    """Put an .npz into the store, return its digest. Raises InvalidInputError."""
    if not path.is_file():
        raise InvalidInputError(f"there is no data file {path}")
    with path.open("rb") as file:
        # An npz is a zip; anything else is refused here rather than minutes later in the worker.
        if file.read(4) != b"PK\x03\x04":
            raise InvalidInputError(f"{path.name} is not an .npz file")
    return blobs.put_file(path)[0]


def import_release(
    session: Session,
    spec: ImportSpec,
    files: Mapping[str, StoredFile],
    *,
    unmeasured: bool,
    max_accuracy_drop: float,
    blobs: BlobStore,
    repository: Repository,
    now: datetime,
    actor: str,
) -> Release:
    """Publish ready-made artifacts; `files` are the artifacts by the names that the spec gives them.

    Raises InvalidInputError for files or goldens that do not fit the spec, RefusedError for variants without measurement unless
    `unmeasured` says that this is meant.
    """
    _check_import(spec, files, unmeasured=unmeasured)
    lineage = Lineage(source="import", note=spec.note)
    release = begin_release(
        session, spec.model, source="import", created_by=actor, lineage=lineage, version=spec.version, note=spec.note, labels=spec.labels
    )
    measured = all(variant.quality is not None for variant in spec.variants)
    record(session, "release.imported", actor=actor, subject=name_of(release), detail={"measured": measured})
    candidates = [judge_variant(_candidate(v, files[v.file]), max_accuracy_drop=max_accuracy_drop) for v in spec.variants]
    publish_release(
        session,
        release,
        candidates,
        golden=spec.golden,
        bounds=spec.bounds,
        custom=spec.custom,
        blobs=blobs,
        repository=repository,
        now=now,
        actor=actor,
    )
    return release


def create_release_from_run(
    session: Session,
    trained: TrainedModel,
    *,
    calibration: str,
    options: BuildOptions,
    created_by: str,
    held_out: str = "",
    version: int | None = None,
    note: str = "",
) -> Release:
    """Order a release of a run's newest weights; `calibration` and `held_out` are digests of data in the store."""
    request = BuildRequest(
        source="task",
        model=trained.task,
        weights=trained.checkpoint,
        calibration=calibration,
        held_out=held_out,
        labels=list(trained.labels),
        options=options,
        lineage=trained.lineage,
    )
    return order_build(session, trained.model, request, created_by=created_by, version=version, note=note)


def create_release_from_file(
    session: Session,
    model: str,
    *,
    kind: Literal["onnx", "pt2"],
    file: str,
    calibration: str,
    labels: list[str],
    options: BuildOptions,
    created_by: str,
    held_out: str = "",
    version: int | None = None,
    note: str = "",
) -> Release:
    """Order a release of a model file; `file`, `calibration` and `held_out` are digests of what is in the store."""
    request = BuildRequest(
        source=kind,
        model=file,
        calibration=calibration,
        held_out=held_out,
        labels=labels,
        options=options,
        lineage=Lineage(source="import", note=note),
    )
    return order_build(session, model, request, created_by=created_by, version=version, note=note)


def _check_import(spec: ImportSpec, files: Mapping[str, StoredFile], *, unmeasured: bool) -> None:
    names = [variant.name for variant in spec.variants]
    if len(set(names)) != len(names):
        raise InvalidInputError(f"each variant may be named once, got {', '.join(names)}")
    missing = sorted({variant.file for variant in spec.variants} - set(files))
    if missing:
        raise InvalidInputError(f"the description names files that did not come: {', '.join(missing)}")
    bare = [variant.name for variant in spec.variants if variant.quality is None]
    if bare and not unmeasured:
        raise RefusedError(f"without measurement: {', '.join(bare)}. Measure with `covey-quantize`, or say --unmeasured to take the risk")
    fault = check_golden(spec.golden)
    if fault:
        raise InvalidInputError(fault)


def _candidate(variant: ImportedVariant, file: StoredFile) -> Candidate:
    return Candidate(
        name=variant.name,
        precision=variant.precision,
        runtime=variant.runtime,
        min_runtime_version=variant.min_runtime_version,
        artifact=file.digest,
        length=file.length,
        input=variant.input,
        output=variant.output,
        golden_tolerance=variant.golden_tolerance,
        quality=variant.quality,
        memory=variant.memory,
        reason="" if variant.quality else "imported without measurement",
    )
