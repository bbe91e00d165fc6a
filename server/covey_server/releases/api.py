"""REST: releases and artifacts."""

from pathlib import Path
from typing import Annotated, Literal

from fastapi import APIRouter, File, Form, Query, Request, Response, UploadFile
from fastapi import Path as PathParameter
from fastapi.responses import FileResponse
from sqlmodel import Session

from covey_contract.ids import NAME_PATTERN
from covey_contract.limits import MAX_MANIFEST_BYTES
from covey_server.access.guard import Operator, Viewer
from covey_server.access.idempotency import Idempotent
from covey_server.api_deps import Page, PageQuery, PartsDep, ReadSession, WriteSession, problems, with_etag
from covey_server.errors import InvalidInputError
from covey_server.parts import BlobStore
from covey_server.releases import service
from covey_server.releases.imports import create_release_from_file, create_release_from_run, import_release, store_data, store_file
from covey_server.releases.models import Release, ReleaseState
from covey_server.releases.requests import decode_import_spec
from covey_server.releases.trained import trained_model
from covey_server.releases.uploads import on_disk, parse_description
from covey_server.releases.views import ReleaseFromRun, ReleaseView, UploadedModel, Withdrawal

router = APIRouter(prefix="/api/v1", tags=["releases"])
ReleaseId = Annotated[int, PathParameter(ge=1, le=2**31 - 1, description="id of the release")]
_SUFFIXES: dict[str, Literal["onnx", "pt2"]] = {".onnx": "onnx", ".pt2": "pt2"}


@router.get("/releases", summary="List releases", responses=problems(422))
def list_releases(
    _: Viewer,
    session: ReadSession,
    page: PageQuery,
    model: Annotated[str | None, Query(pattern=NAME_PATTERN, description="only of this model")] = None,
    state: ReleaseState | None = None,
) -> Page[ReleaseView]:
    """Releases, the newest first, each with its variants."""
    before = page.after_id(0) or None
    rows = service.list_releases(session, model=model, state=state, before=before, limit=page.limit + 1)
    variants = service.list_variants(session, [service.id_of(row) for row in rows])
    views = [ReleaseView.of(row, variants[service.id_of(row)]) for row in rows]
    return Page[ReleaseView].cut(views, page, key=lambda view: (view.id,))


@router.get("/releases/{release_id}", response_model=ReleaseView, summary="One release", responses=problems(404, 422))
def get_release(release_id: ReleaseId, request: Request, _: Viewer, session: ReadSession) -> Response:
    """A release with everything that was measured; while it is being built, `progress` says what happens now."""
    return with_etag(request, _view(session, service.get_release(session, release_id)))


@router.post(
    "/releases", status_code=201, response_model=ReleaseView, summary="Build a release from a run", responses=problems(404, 409, 422)
)
def create_from_run(body: ReleaseFromRun, actor: Operator, parts: PartsDep, once: Idempotent) -> Response:
    """Order a release of a run's newest weights. A worker exports, quantizes, measures and, if a variant passes, signs it."""
    with parts.db.read() as session:
        trained, run_data = trained_model(session, body.run)
    calibration, held_out = _data_of(body, run_data, parts.blobs)

    def act() -> ReleaseView:
        release = create_release_from_run(
            session,
            trained,
            calibration=calibration,
            held_out=held_out,
            options=body.to_options(),
            created_by=actor.name,
            version=body.version,
            note=body.note,
        )
        return _view(session, release)

    with parts.db.begin() as session:
        return once.answer(session, act)


@router.post(
    "/releases/uploads",
    status_code=201,
    response_model=ReleaseView,
    summary="Build a release from a model file",
    responses=problems(409, 413, 422),
)
def create_from_upload(
    actor: Operator,
    parts: PartsDep,
    once: Idempotent,
    description: Annotated[str, Form(description="JSON of UploadedModel: model, labels, variants, ...", max_length=200_000)],
    model: Annotated[UploadFile, File(description="an .onnx file, or a .pt2 file written by torch.export.save")],
    calibration: Annotated[UploadFile, File(description="an .npz with x float32[n, ...] and, if there are classes, y int64[n]")],
    held_out: Annotated[UploadFile | None, File(description="an .npz to measure with; without it a part of the calibration data")] = None,
) -> Response:
    """Order a release of a model of yours. A .pt2 file can run code when it is loaded, so upload only what you trust."""
    told = parse_description(description, UploadedModel)
    kind = next((kind for suffix, kind in _SUFFIXES.items() if (model.filename or "").endswith(suffix)), None)
    if kind is None:
        raise InvalidInputError(f"the model must be an .onnx or a .pt2 file, got {model.filename!r:.80}")
    with on_disk([upload for upload in (model, calibration, held_out) if upload], work_dir=parts.settings.path()) as paths:
        file = store_file(paths[0], parts.blobs)
        data = [store_data(path, parts.blobs) for path in paths[1:]]

    def act() -> ReleaseView:
        release = create_release_from_file(
            session,
            told.model,
            kind=kind,
            file=file.digest,
            calibration=data[0],
            held_out=data[1] if len(data) > 1 else "",
            labels=list(told.labels),
            options=told.to_options(),
            created_by=actor.name,
            version=told.version,
            note=told.note,
        )
        return _view(session, release)

    with parts.db.begin() as session:
        return once.answer(session, act)


@router.post(
    "/releases/imports",
    status_code=201,
    response_model=ReleaseView,
    summary="Publish ready-made artifacts",
    responses=problems(409, 413, 422),
)
def import_artifacts(
    actor: Operator,
    parts: PartsDep,
    once: Idempotent,
    # A file and not a field: goldens can be longer than a form's field may be.
    description: Annotated[UploadFile, File(description="release.json: see docs/releases.md")],
    artifacts: Annotated[list[UploadFile], File(description="the artifacts, under the file names that the description gives them")],
    unmeasured: Annotated[bool, Form(description="take variants without measurement; goes into the audit record")] = False,
) -> Response:
    """Publish artifacts that were made elsewhere. Measured variants pass the quality gate; unmeasured ones need `unmeasured`."""
    spec = decode_import_spec(description.file.read(MAX_MANIFEST_BYTES + 1))
    with on_disk(artifacts, work_dir=parts.settings.path()) as paths:
        names = [upload.filename or "" for upload in artifacts]
        files = {name: store_file(path, parts.blobs) for name, path in zip(names, paths, strict=True)}

    def act() -> ReleaseView:
        release = import_release(
            session,
            spec,
            files,
            unmeasured=unmeasured,
            max_accuracy_drop=parts.settings.releases.max_accuracy_drop,
            blobs=parts.blobs,
            repository=parts.repository,
            now=once.now,
            actor=actor.name,
        )
        return _view(session, release)

    with parts.db.begin() as session:
        return once.answer(session, act)


@router.post("/releases/{release_id}/withdraw", summary="Withdraw a release", responses=problems(404, 409, 422))
def withdraw_release(release_id: ReleaseId, body: Withdrawal, actor: Operator, parts: PartsDep, session: WriteSession) -> ReleaseView:
    """No rollout may ship it any more and running ones halt; devices that serve it go on serving it."""
    release = service.withdraw_release(session, release_id, repository=parts.repository, actor=actor.name, reason=body.reason)
    return _view(session, release)


@router.get("/artifacts/{digest}", response_class=FileResponse, summary="Download an artifact", responses=problems(404, 422))
def download_artifact(
    digest: Annotated[str, PathParameter(pattern="^[0-9a-f]{64}$", description="sha256")], _: Viewer, parts: PartsDep, session: ReadSession
) -> FileResponse:
    """The bytes of an artifact or manifest; ranges are supported."""
    artifact = service.find_artifact(session, digest)
    headers = {"ETag": f'"{digest}"', "Cache-Control": "private, max-age=31536000, immutable"}
    return FileResponse(parts.blobs.path(artifact.digest), media_type="application/octet-stream", filename=digest, headers=headers)


def _data_of(body: ReleaseFromRun, run_data: Path | None, blobs: BlobStore) -> tuple[str, str]:
    """What to calibrate and what to measure with. With one file only, the quantizer keeps a part of it for measuring."""
    held_out = Path(body.held_out) if body.held_out else run_data
    if body.calibration:
        return store_data(Path(body.calibration), blobs), store_data(held_out, blobs) if held_out else ""
    if held_out is None:
        raise InvalidInputError("the run has no held-out data; name an npz as `calibration`")
    return store_data(held_out, blobs), ""


def _view(session: Session, release: Release) -> ReleaseView:
    session.flush()
    release_id = service.id_of(release)
    return ReleaseView.of(release, service.list_variants(session, [release_id])[release_id])
