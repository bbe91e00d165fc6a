"""Tasks and runs over REST: /api/v1/tasks, /api/v1/runs."""

from datetime import datetime

from fastapi import APIRouter, Request, Response

from covey_server.access.guard import Operator, Viewer
from covey_server.api_deps import Page, PageQuery, PartsDep, ReadSession, WriteSession, problems, with_etag
from covey_server.errors import InvalidInputError
from covey_server.federation import service
from covey_server.federation.models import Run, Task
from covey_server.federation.start import invite
from covey_server.federation.views import (
    AssessmentView,
    NewReference,
    NewRun,
    NewTask,
    PlanRequest,
    RoundView,
    RunDetail,
    RunView,
    TaskView,
)

router = APIRouter()
tasks = APIRouter(prefix="/tasks", tags=["tasks"])
runs = APIRouter(prefix="/runs", tags=["runs"])


@tasks.post("", status_code=201, responses=problems(422), summary="Register a task's code")
def create_task(body: NewTask, actor: Operator, session: WriteSession, parts: PartsDep) -> TaskView:
    """Store one Python file and sign it, so that participants can fetch it by its digest. The same code again is the same task."""
    task = service.create_task(
        session,
        body.name,
        body.code.encode(),
        purpose=body.purpose,
        dataset=body.dataset,
        labels=body.labels,
        blobs=parts.blobs,
        repository=parts.repository,
        actor=actor.name,
        now=parts.clock(),
    )
    return TaskView.of(task)


@tasks.get("", responses=problems(422), summary="All versions of all tasks")
def list_tasks(_: Viewer, session: ReadSession, page: PageQuery) -> Page[TaskView]:
    """Oldest first; the newest version of a name is the one that runs use."""
    found = service.list_tasks(session, after=page.after_id(0), limit=page.limit + 1)
    return Page.cut([TaskView.of(task) for task in found], page, key=lambda view: (view.id,))


@tasks.get("/{name}", response_model=TaskView, responses=problems(404), summary="The newest version of one task")
def get_task(name: str, _: Viewer, session: ReadSession, request: Request) -> Response:
    """With its digest, which participants allow in their policy."""
    return with_etag(request, TaskView.of(service.get_task(session, name)))


@runs.post("/plan", responses=problems(404, 422), summary="Predict what a run would cost")
def plan_run(body: PlanRequest, _: Viewer, session: ReadSession) -> AssessmentView:
    """Epsilon per participant and round, and what speaks against it, before anybody is asked. Changes nothing."""
    return AssessmentView.of(service.plan_run(session, body.spec()))


@runs.post("", status_code=201, responses=problems(404, 422), summary="Create a run")
def create_run(body: NewRun, actor: Operator, session: WriteSession, parts: PartsDep) -> RunView:
    """Refused (422, with what to change) if the planner says that it cannot work. `start` invites the participants at once."""
    run = service.create_run(session, body.spec(), blobs=parts.blobs, actor=actor.name, now=parts.clock())
    if body.start:
        run = invite(session, run.id, parts=parts, actor=actor.name)
    return _view(session, run)


@runs.get("", responses=problems(422), summary="All runs, newest first")
def list_runs(_: Viewer, session: ReadSession, page: PageQuery) -> Page[RunView]:
    """Newest first."""
    found = service.list_runs(session, before=_position(page.after(2)), limit=page.limit + 1)
    views = [_view(session, run) for run in found]
    return Page.cut(views, page, key=lambda view: (view.created_at.isoformat(), view.id))


@runs.get("/{run}", response_model=RunDetail, responses=problems(404), summary="One run")
def get_run(run: str, _: Viewer, session: ReadSession, request: Request) -> Response:
    """With its participants, their answers, and the references set beside it."""
    found = service.get_run(session, run)
    return with_etag(request, RunDetail.build(found, _task(session, found), service.participants_of(session, run)))


@runs.get("/{run}/rounds", responses=problems(404), summary="Rounds of one run")
def list_rounds(run: str, _: Viewer, session: ReadSession) -> list[RoundView]:
    """From round 0, the untrained model, with accuracy and every participant's contribution."""
    service.get_run(session, run)
    return RoundView.of_all(service.rounds_of(session, run), service.contributions_of(session, run))


@runs.post("/{run}/start", responses=problems(404, 409), summary="Start a planned run")
def start_run(run: str, actor: Operator, session: WriteSession, parts: PartsDep) -> RunView:
    """Invite its participants. The rounds begin when all have answered, or enough before the deadline."""
    return _view(session, invite(session, run, parts=parts, actor=actor.name))


@runs.post("/{run}/stop", responses=problems(404, 409), summary="Stop a run")
def stop_run(run: str, actor: Operator, session: WriteSession, parts: PartsDep) -> RunView:
    """End it with the model of its newest finished round. Charges stand."""
    return _view(session, service.stop_run(session, run, actor=actor.name, now=parts.clock()))


@runs.post("/{run}/references", responses=problems(404, 422), summary="Put another training's accuracy beside a run")
def add_reference(run: str, body: NewReference, actor: Operator, session: WriteSession) -> RunView:
    """For example the same model without privacy, so that the price of privacy is visible."""
    return _view(session, service.add_reference(session, run, body.name, body.accuracies, actor=actor.name))


router.include_router(tasks)
router.include_router(runs)


def _view(session: ReadSession, run: Run) -> RunView:
    return RunView.build(run, _task(session, run))


def _position(key: tuple[str, ...] | None) -> tuple[datetime, str] | None:
    if key is None:
        return None
    try:
        at = datetime.fromisoformat(key[0])
    except ValueError as exc:
        raise InvalidInputError("the cursor is not one that this list gave") from exc
    if at.tzinfo is None:
        raise InvalidInputError("the cursor is not one that this list gave")
    return at, key[1]


def _task(session: ReadSession, run: Run) -> Task:
    return service.task_of(session, run)
