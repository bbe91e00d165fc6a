"""REST: rollouts."""

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Path, Request, Response
from sqlmodel import Session

from covey_server.access.guard import Operator, Viewer
from covey_server.access.idempotency import Idempotent
from covey_server.api_deps import Page, PageQuery, PageRequest, PartsDep, ReadSession, WriteSession, problems, with_etag
from covey_server.errors import InvalidInputError
from covey_server.releases.service import get_release
from covey_server.rollouts import acts
from covey_server.rollouts.models import Rollout, RolloutDeviceState, RolloutState
from covey_server.rollouts.quarantine import release_quarantine
from covey_server.rollouts.views import NewRollout, QuarantineRelease, QuarantineReleaseView, RolloutDeviceView, RolloutView

router = APIRouter(prefix="/api/v1", tags=["rollouts"])
RolloutId = Annotated[str, Path(max_length=64, description="id of the rollout")]


@router.get("/rollouts", summary="List rollouts", responses=problems(422))
def list_rollouts(_: Viewer, session: ReadSession, page: PageQuery, state: RolloutState | None = None) -> Page[RolloutView]:
    """Rollouts, the newest first, with how many devices of each phase are where."""
    rows = acts.list_rollouts(session, state=state, before=_before(page), limit=page.limit + 1)
    return Page[RolloutView].cut(_views(session, rows), page, key=lambda view: (view.created_at.isoformat(), view.id))


@router.post("/rollouts", status_code=201, response_model=RolloutView, summary="Draft a rollout", responses=problems(404, 409, 422))
def create_rollout(body: NewRollout, actor: Operator, parts: PartsDep, session: WriteSession, once: Idempotent) -> Response:
    """Decide who gets a published release in which phase; nothing is sent before it is started."""

    def act() -> RolloutView:
        rollout = acts.create_rollout(
            session,
            body.release,
            selector=body.selector,
            phases=body.phase_rows(),
            name=body.name,
            probation_s=body.probation_s,
            deadline_s=body.deadline_s,
            revert_on_halt=body.revert_on_halt,
            actor=actor.name,
            now=once.now,
        )
        if body.start:
            session.flush()
            acts.start_rollout(session, rollout.id, director=parts.director, actor=actor.name, now=once.now)
        return _view(session, rollout)

    return once.answer(session, act)


@router.get("/rollouts/{rollout_id}", response_model=RolloutView, summary="One rollout", responses=problems(404))
def get_rollout(rollout_id: RolloutId, request: Request, _: Viewer, session: ReadSession) -> Response:
    """A rollout and how far each phase is."""
    return with_etag(request, _view(session, acts.get_rollout(session, rollout_id)))


@router.get("/rollouts/{rollout_id}/devices", summary="The devices of a rollout", responses=problems(404, 422))
def list_rollout_devices(
    rollout_id: RolloutId, _: Viewer, session: ReadSession, page: PageQuery, state: RolloutDeviceState | None = None
) -> Page[RolloutDeviceView]:
    """Each device's part, by phase."""
    rows = acts.list_rollout_devices(session, rollout_id, state=state, after=page.after_id(0), limit=page.limit + 1)
    ids = {row.device_id: row.id for row in rows}
    return Page[RolloutDeviceView].cut(
        [RolloutDeviceView.model_validate(row) for row in rows], page, key=lambda view: (ids[view.device_id],)
    )


@router.post("/rollouts/{rollout_id}/start", summary="Start a rollout", responses=problems(404, 409))
def start_rollout(rollout_id: RolloutId, actor: Operator, parts: PartsDep, session: WriteSession) -> RolloutView:
    """Tell the devices of the first phase."""
    return _view(session, acts.start_rollout(session, rollout_id, director=parts.director, actor=actor.name, now=parts.clock()))


@router.post("/rollouts/{rollout_id}/pause", summary="Pause a rollout", responses=problems(404, 409))
def pause_rollout(rollout_id: RolloutId, actor: Operator, session: WriteSession) -> RolloutView:
    """Tell no further device; those that were told go on, and failures still halt the rollout."""
    return _view(session, acts.pause_rollout(session, rollout_id, actor=actor.name))


@router.post("/rollouts/{rollout_id}/resume", summary="Resume a rollout", responses=problems(404, 409))
def resume_rollout(rollout_id: RolloutId, actor: Operator, session: WriteSession) -> RolloutView:
    """Go on after a pause. A halted rollout stays halted."""
    return _view(session, acts.resume_rollout(session, rollout_id, actor=actor.name))


@router.post("/rollouts/{rollout_id}/cancel", summary="Cancel a rollout", responses=problems(404, 409))
def cancel_rollout(rollout_id: RolloutId, actor: Operator, parts: PartsDep, session: WriteSession) -> RolloutView:
    """End it for good: devices at work are told to keep what they had, those that are done keep the release."""
    return _view(session, acts.cancel_rollout(session, rollout_id, director=parts.director, actor=actor.name, now=parts.clock()))


@router.post(
    "/devices/{device}/quarantine/releases",
    status_code=202,
    tags=["devices"],
    summary="Let a device try quarantined digests again",
    responses=problems(403, 404, 409, 422),
)
def release_from_quarantine(
    device: Annotated[str, Path(description="device id", max_length=200)],
    body: QuarantineRelease,
    actor: Operator,
    parts: PartsDep,
    session: WriteSession,
) -> QuarantineReleaseView:
    """A signed order; the device's quarantine shows when it has obeyed. Nothing is tried by itself: start a rollout for that."""
    released = release_quarantine(session, device, body.digests, director=parts.director, actor=actor.name, now=parts.clock())
    return QuarantineReleaseView(digests=released)


def _view(session: Session, rollout: Rollout) -> RolloutView:
    return _views(session, [rollout])[0]


def _views(session: Session, rows: Sequence[Rollout]) -> list[RolloutView]:
    session.flush()
    counts = acts.count_devices(session, [row.id for row in rows])
    return [RolloutView.of(row, get_release(session, row.release_id), counts[row.id]) for row in rows]


def _before(page: PageRequest) -> tuple[datetime, str] | None:
    key = page.after(2)
    if key is None:
        return None
    try:
        moment = datetime.fromisoformat(key[0])
    except ValueError as exc:
        raise InvalidInputError("the cursor is not one that this list gave") from exc
    if moment.tzinfo is None:
        raise InvalidInputError("the cursor is not one that this list gave")
    return moment, key[1]
