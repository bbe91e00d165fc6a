"""Tasks and runs: made, planned, started, answered, stopped, finished.

The rounds themselves are driven by the ServerApp (`rounds.py`), which keeps its books through `desk.py`; the worker starts it and
starts it again (`ticks.py`).
"""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
from sqlmodel import Session, col, select

from covey_contract.codec import encode
from covey_contract.ids import DeviceId, parse_name
from covey_contract.limits import MAX_REASON_CHARS
from covey_contract.messages import InviteToRun, Outcome, PrivacyPlan, Reply, Scalar, StopRun
from covey_contract.topics import Channel, device_topic
from covey_server import outbox
from covey_server.audit.service import record
from covey_server.clock import to_millis
from covey_server.devices.models import Device, DeviceState
from covey_server.errors import ConflictError, InvalidInputError, NotFoundError, RefusedError
from covey_server.federation.models import (
    Contribution,
    ParticipantState,
    Round,
    Run,
    RunParticipant,
    RunState,
    Task,
)
from covey_server.parts import BlobStore, Director, Repository
from covey_server.privacy import accounting
from covey_server.privacy import service as ledger
from covey_server.privacy.rules import RECORD_LEVEL, Assessment, assess

MAX_TASK_BYTES = 1_000_000
OPEN_STATES = (RunState.PLANNED, RunState.INVITING, RunState.RUNNING)
_STOP_EXPIRES = timedelta(days=7)


@dataclass(frozen=True, slots=True)
class RunSpec:
    """What an operator asks for. `participants` empty: every active device and partner."""

    task: str
    model: str
    rounds: int
    plan: PrivacyPlan
    hyperparameters: Mapping[str, Scalar]
    participants: tuple[str, ...] = ()
    min_participants: int = 2
    held_out: str = ""  # path of an .npz with x and y on the server
    max_epsilon: float = 8.0  # of any participant's dataset after the last round, earlier runs included
    allow_unprotected: bool = False


# -- tasks -------------------------------------------------------------------------------------------------------------


def create_task(
    session: Session, name: str, code: bytes, *, purpose: str, dataset: str, labels: Sequence[str], blobs: BlobStore,
    repository: Repository, actor: str, now: datetime,
) -> Task:  # fmt: skip
    """Store a task's code, sign it as a TUF target, and note it. The same code again is the same task."""
    parse_name(name, "task")
    parse_name(purpose, "purpose")
    parse_name(dataset, "dataset")
    if not 0 < len(code) <= MAX_TASK_BYTES:
        raise InvalidInputError(f"a task is one Python file of at most {MAX_TASK_BYTES} bytes, got {len(code)}")
    try:
        compile(code, f"{name}.py", "exec")
    except (SyntaxError, ValueError) as exc:
        raise InvalidInputError(f"the task is not Python: {exc}") from exc
    digest = blobs.put(code)
    known = session.exec(select(Task).where(Task.name == name, Task.digest == digest)).first()
    if known is not None:
        return known
    repository.add_target(f"tasks/{name}/{digest}.py", code)
    task = Task(name=name, digest=digest, purpose=purpose, dataset=dataset, labels=list(labels), created_by=actor, created_at=now)
    session.add(task)
    session.flush()
    record(session, "task.created", actor=actor, subject=name, detail={"digest": digest, "dataset": dataset, "purpose": purpose})
    return task


def get_task(session: Session, name: str) -> Task:
    """The newest version of a task. Raises NotFoundError."""
    task = session.exec(select(Task).where(Task.name == name).order_by(col(Task.id).desc()).limit(1)).first()
    if task is None:
        raise NotFoundError("task", name)
    return task


def list_tasks(session: Session, *, after: int = 0, limit: int = 100) -> list[Task]:
    """All versions of all tasks, oldest first."""
    return list(session.exec(select(Task).where(col(Task.id) > after).order_by(col(Task.id)).limit(limit)))


# -- runs --------------------------------------------------------------------------------------------------------------


def plan_run(session: Session, spec: RunSpec) -> Assessment:
    """Predict what a run would cost each participant, before anybody is asked."""
    task = get_task(session, spec.task)
    devices = _participants(session, spec.participants)
    histories = {device.id: ledger.mechanisms_of(session, device=device.id, dataset=task.dataset) for device in devices}
    return assess(
        spec.plan,
        rounds=spec.rounds,
        histories=histories,
        max_epsilon=spec.max_epsilon,
        min_participants=spec.min_participants,
        allow_unprotected=spec.allow_unprotected,
        epsilon_of=lambda mechanisms, delta: accounting.epsilon_of(mechanisms, delta=delta),
    )


def create_run(session: Session, spec: RunSpec, *, blobs: BlobStore, actor: str, now: datetime) -> Run:
    """Note a run that was found to be possible. Raises RefusedError with what to change."""
    parse_name(spec.model, "model")
    if spec.min_participants < 1:
        raise InvalidInputError(f"min_participants must be at least 1, got {spec.min_participants}")
    assessment = plan_run(session, spec)
    if assessment.refusals:
        raise RefusedError("; ".join(assessment.refusals))
    task = get_task(session, spec.task)
    run = Run(
        id=f"r{secrets.token_hex(5)}",
        task_id=task.id or 0,
        model=spec.model,
        rounds_total=spec.rounds,
        plan=msgspec.to_builtins(spec.plan),
        hyperparameters=dict(spec.hyperparameters),
        predicted_epsilon=assessment.epsilon if spec.plan.level == RECORD_LEVEL else None,
        min_participants=spec.min_participants,
        held_out=_stored_data(spec.held_out, blobs),
        created_by=actor,
        created_at=now,
    )
    session.add(run)
    session.flush()
    for device in _participants(session, spec.participants):
        session.add(RunParticipant(run_id=run.id, device_id=device.id, command_id=secrets.token_hex(8), invited_at=now))
    record(session, "run.created", actor=actor, subject=run.id, detail={"task": task.name, "rounds": run.rounds_total})
    _emit(session, run)
    return run


def start_run(
    session: Session, run_id: str, *, director: Director, fleet_api: str, invite_timeout: timedelta, round_timeout: timedelta, actor: str,
    now: datetime,
) -> Run:  # fmt: skip
    """Invite the participants. The invitation is signed, and holds as long as the run can last."""
    run = get_run(session, run_id)
    if run.state is not RunState.PLANNED:
        raise ConflictError(f"run {run_id} is {run.state.value}; only a planned run can be started")
    task = task_of(session, run)
    expires_at = now + invite_timeout + (run.rounds_total + 1) * round_timeout
    for member in participants_of(session, run_id):
        invitation = InviteToRun(
            id=member.command_id,
            device=member.device_id,
            expires_at=to_millis(expires_at),
            run=run.id,
            task=task.name,
            task_digest=task.digest,
            purpose=task.purpose,
            dataset=task.dataset,
            rounds=run.rounds_total,
            plan=plan_of(run),
            fleet_api=fleet_api,
            hyperparameters=run.hyperparameters,
        )
        member.invited_at = now
        _send(session, member.device_id, invitation, director)
    run.state, run.started_at, run.invite_deadline = RunState.INVITING, now, now + invite_timeout
    record(session, "run.started", actor=actor, subject=run.id)
    _emit(session, run)
    return run


def take_reply(session: Session, device: DeviceId, reply: Reply, *, now: datetime) -> bool:
    """Note a participant's answer to its invitation. False if the reply answers no invitation of ours."""
    query = select(RunParticipant).where(RunParticipant.command_id == reply.id, RunParticipant.device_id == device)
    member = session.exec(query).first()
    if member is None:
        return False
    if member.state is ParticipantState.INVITED and reply.outcome in {Outcome.ACCEPTED, Outcome.REFUSED}:
        member.state = ParticipantState.ACCEPTED if reply.outcome is Outcome.ACCEPTED else ParticipantState.REFUSED
        member.reason, member.replied_at = reply.reason[:MAX_REASON_CHARS], now
        session.add(member)
        _emit(session, get_run(session, member.run_id))
    return True


def stop_run(session: Session, run_id: str, *, actor: str, now: datetime) -> Run:
    """End a run now, with what it has. The ServerApp notices by itself; the worker tells Flower and the participants."""
    run = get_run(session, run_id)
    if run.state not in OPEN_STATES:
        raise ConflictError(f"run {run_id} is {run.state.value} already")
    record(session, "run.stopped", actor=actor, subject=run.id)
    return finish_run(session, run_id, RunState.STOPPED, reason=f"stopped by {actor}", now=now)


def finish_run(session: Session, run_id: str, state: RunState, *, reason: str, now: datetime) -> Run:
    """Note how a run ended; a run that has ended stays as it ended."""
    run = get_run(session, run_id)
    if run.state in OPEN_STATES:
        run.state, run.reason, run.finished_at = state, reason[:MAX_REASON_CHARS], now
        session.add(run)
        _emit(session, run)
    return run


def dismiss_participants(session: Session, run: Run, *, director: Director, now: datetime) -> int:
    """Tell everybody who accepted or may still accept that the run has ended; how many were told."""
    told = [member for member in participants_of(session, run.id) if member.state is not ParticipantState.REFUSED]
    for member in told:
        stop = StopRun(id=secrets.token_hex(8), device=member.device_id, expires_at=to_millis(now + _STOP_EXPIRES), run=run.id)
        _send(session, member.device_id, stop, director)
    return len(told)


def add_reference(session: Session, run_id: str, name: str, accuracies: Sequence[float], *, actor: str) -> Run:
    """Put another training's accuracy per round beside a run: the same without privacy, or on all data in one place."""
    parse_name(name, "reference")
    if not accuracies or not all(0 <= value <= 1 for value in accuracies) or len(accuracies) > 10_000:
        raise InvalidInputError("expected one accuracy within 0..1 per round, from round 0 or 1 on")
    run = get_run(session, run_id)
    run.references = {**run.references, name: [float(value) for value in accuracies]}
    session.add(run)
    record(session, "run.reference_added", actor=actor, subject=run_id, detail={"name": name})
    _emit(session, run)
    return run


def get_run(session: Session, run_id: str) -> Run:
    """One run. Raises NotFoundError."""
    run = session.get(Run, run_id)
    if run is None:
        raise NotFoundError("run", run_id)
    return run


def task_of(session: Session, run: Run) -> Task:
    """The task that a run executes. Raises NotFoundError."""
    task = session.get(Task, run.task_id)
    if task is None:
        raise NotFoundError("task", run.task_id)
    return task


def list_runs(session: Session, *, before: tuple[datetime, str] | None = None, limit: int = 100) -> list[Run]:
    """Newest first."""
    query = select(Run).order_by(col(Run.created_at).desc(), col(Run.id).desc()).limit(limit)
    if before is not None:
        at, ident = before
        query = query.where((col(Run.created_at) < at) | ((col(Run.created_at) == at) & (col(Run.id) < ident)))
    return list(session.exec(query))


def participants_of(session: Session, run_id: str) -> list[RunParticipant]:
    """All participants of a run."""
    return list(session.exec(select(RunParticipant).where(RunParticipant.run_id == run_id).order_by(RunParticipant.device_id)))


def rounds_of(session: Session, run_id: str) -> list[Round]:
    """All rounds of a run, from 0."""
    return list(session.exec(select(Round).where(Round.run_id == run_id).order_by(col(Round.number))))


def contributions_of(session: Session, run_id: str) -> list[Contribution]:
    """Who was asked in which round, and what came."""
    query = select(Contribution).where(Contribution.run_id == run_id).order_by(col(Contribution.round), Contribution.device_id)
    return list(session.exec(query))


def plan_of(run: Run) -> PrivacyPlan:
    """The run's plan as the wire has it."""
    return msgspec.convert(run.plan, PrivacyPlan)


def _participants(session: Session, wanted: Sequence[str]) -> list[Device]:
    active = {device.id: device for device in session.exec(select(Device).where(Device.state == DeviceState.ACTIVE))}
    for ident in wanted:
        if ident not in active:
            raise NotFoundError("active participant", ident)
    chosen = [active[ident] for ident in dict.fromkeys(wanted)] if wanted else list(active.values())
    return sorted((device for device in chosen if device.supernode_public_key), key=lambda device: device.id)


def _stored_data(path: str, blobs: BlobStore) -> str:
    """Copy held-out data into the store, so that the run does not depend on the path."""
    if not path:
        return ""
    file = Path(path)
    if not file.is_file():
        raise InvalidInputError(f"there is no held-out file {path}")
    with file.open("rb") as stream:
        if stream.read(4) != b"PK\x03\x04":
            raise InvalidInputError(f"{file.name} is not an .npz file")
    return str(blobs.path(blobs.put_file(file)[0]))


def _send(session: Session, device: str, command: InviteToRun | StopRun, director: Director) -> None:
    payload = encode(director.sign(encode(command)))
    outbox.publish(session, device_topic(DeviceId(device), Channel.COMMAND), payload)


def _emit(session: Session, run: Run) -> None:
    session.add(run)
    session.flush()
    data: dict[str, Any] = {"run": run.id, "state": run.state.value, "round": run.rounds_done}
    outbox.emit(session, "run.changed", data)
