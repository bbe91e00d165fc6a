"""Runs of federated training: accuracy a round beside its references, participants, and what it cost them in privacy."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import func
from sqlmodel import Session, col, select

from covey_server.console.queries.charts import Chart, chart, line
from covey_server.errors import NotFoundError
from covey_server.federation.models import Contribution, ContributionState, ParticipantState, Round, Run, RunParticipant, Task
from covey_server.releases.models import Release

PAGE_SIZE = 30
_REFERENCES = {
    "central": "Central, all data in one place",
    "centralised": "Central, all data in one place",
    "centralized": "Central, all data in one place",
    "federated": "Federated, no privacy",
    "non_private": "Federated, no privacy",
    "nonprivate": "Federated, no privacy",
    "federated_nonprivate": "Federated, no privacy",
    "federated_non_private": "Federated, no privacy",
}


@dataclass(frozen=True, slots=True)
class RunLine:
    """One run in a list."""

    id: str
    task: str
    model: str
    state: str
    reason: str
    rounds_done: int
    rounds_total: int
    accuracy: float | None
    accuracies: tuple[float, ...]
    accepted: int
    refused: int
    is_private: bool
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None


@dataclass(frozen=True, slots=True)
class RunPage:
    """One page of the list, newest first."""

    lines: tuple[RunLine, ...]
    next: str  # id of the last line, "" at the end


@dataclass(frozen=True, slots=True)
class ParticipantView:
    """One participant of a run."""

    device_id: str
    state: str
    reason: str
    replied_at: datetime | None
    received: int
    refused: int
    missing: int


@dataclass(frozen=True, slots=True)
class RoundView:
    """One round."""

    number: int
    started_at: datetime
    finished_at: datetime | None
    sampled: int
    contributors: int
    accuracy: float | None
    loss: float | None
    reason: str

    @property
    def seconds(self) -> float | None:
        """How long it took."""
        return (self.finished_at - self.started_at).total_seconds() if self.finished_at else None


@dataclass(frozen=True, slots=True)
class ReferenceView:
    """The same model, trained in a way that gives up privacy."""

    label: str
    by_round: dict[int, float]
    final: float
    price: float | None  # final private accuracy minus this one


@dataclass(frozen=True, slots=True)
class ReleaseRef:
    """A release made from the run."""

    id: int
    title: str
    state: str


@dataclass(frozen=True, slots=True)
class RunView:
    """A run's page."""

    line: RunLine
    task_digest: str
    purpose: str
    dataset: str
    labels: tuple[str, ...]
    plan: tuple[tuple[str, str], ...]
    hyperparameters: tuple[tuple[str, str], ...]
    predicted_epsilon: float | None
    delta: float
    min_participants: int
    created_by: str
    participants: tuple[ParticipantView, ...]
    rounds: tuple[RoundView, ...]
    references: tuple[ReferenceView, ...]
    releases: tuple[ReleaseRef, ...]


def list_runs(session: Session, *, after: str = "", limit: int = PAGE_SIZE) -> RunPage:
    """Runs, newest first."""
    query = select(Run).order_by(col(Run.created_at).desc(), col(Run.id).desc()).limit(limit + 1)
    last = session.get(Run, after) if after else None
    if last is not None:
        query = query.where(col(Run.created_at) < last.created_at)
    rows = session.exec(query).all()
    lines = tuple(_line(session, row) for row in rows[:limit])
    return RunPage(lines, lines[-1].id if len(rows) > limit else "")


def get_run(session: Session, run_id: str) -> RunView:
    """One run. Raises NotFoundError."""
    row = session.get(Run, run_id)
    if row is None:
        raise NotFoundError("run", run_id)
    task = session.get(Task, row.task_id)
    run_line = _line(session, row)
    return RunView(
        line=run_line,
        task_digest=task.digest if task else "",
        purpose=task.purpose if task else "",
        dataset=task.dataset if task else "",
        labels=tuple(task.labels) if task else (),
        plan=_pairs(row.plan),
        hyperparameters=_pairs(row.hyperparameters),
        predicted_epsilon=row.predicted_epsilon,
        delta=float(row.plan.get("delta") or 0.0),
        min_participants=row.min_participants,
        created_by=row.created_by,
        participants=_participants(session, row.id),
        rounds=_rounds(session, row.id),
        references=_references(row, run_line.accuracy),
        releases=_releases(session, row.id),
    )


def accuracy_chart(view: RunView) -> Chart:
    """Accuracy a round: this run, and its references dashed. Round 0 is the untrained model, if that was measured."""
    measured = {each.number: each.accuracy for each in view.rounds}
    references = {each.label: each.by_round for each in view.references}
    x = sorted({*measured, *(number for values in references.values() for number in values)})
    own = line("Federated, private" if view.line.is_private else "Federated", [_percent(measured.get(number)) for number in x])
    others = [line(label, [_percent(values.get(number)) for number in x], dashed=True) for label, values in references.items()]
    return chart([float(number) for number in x], [own, *others], unit="%", time=False)


def _line(session: Session, row: Run) -> RunLine:
    query = select(Round.accuracy).where(Round.run_id == row.id, Round.number > 0).order_by(col(Round.number))
    accuracies = tuple(value for value in session.exec(query) if value is not None)
    states = dict(
        session.exec(
            select(RunParticipant.state, func.count()).where(RunParticipant.run_id == row.id).group_by(col(RunParticipant.state))
        ).all()
    )
    task = session.get(Task, row.task_id)
    return RunLine(
        id=row.id,
        task=task.name if task else "",
        model=row.model,
        state=row.state.value,
        reason=row.reason,
        rounds_done=row.rounds_done,
        rounds_total=row.rounds_total,
        accuracy=accuracies[-1] if accuracies else None,
        accuracies=accuracies,
        accepted=states.get(ParticipantState.ACCEPTED, 0),
        refused=states.get(ParticipantState.REFUSED, 0),
        is_private=row.plan.get("level", "none") != "none",
        created_at=row.created_at,
        started_at=row.started_at,
        finished_at=row.finished_at,
    )


def _participants(session: Session, run_id: str) -> tuple[ParticipantView, ...]:
    rows = session.exec(select(RunParticipant).where(RunParticipant.run_id == run_id).order_by(col(RunParticipant.device_id))).all()
    asked = session.exec(
        select(Contribution.device_id, Contribution.state, func.count())
        .where(Contribution.run_id == run_id)
        .group_by(col(Contribution.device_id), col(Contribution.state))
    ).all()
    counts = {(device_id, state): count for device_id, state, count in asked}
    refusals = _refusals(session, run_id)
    return tuple(
        ParticipantView(
            device_id=row.device_id,
            state=row.state.value,
            reason=row.reason or refusals.get(row.device_id, ""),
            replied_at=row.replied_at,
            received=counts.get((row.device_id, ContributionState.RECEIVED), 0),
            refused=counts.get((row.device_id, ContributionState.REFUSED), 0),
            missing=counts.get((row.device_id, ContributionState.MISSING), 0),
        )
        for row in rows
    )


def _refusals(session: Session, run_id: str) -> dict[str, str]:
    query = (
        select(Contribution)
        .where(Contribution.run_id == run_id, Contribution.state == ContributionState.REFUSED)
        .order_by(col(Contribution.round).desc())
    )
    return {row.device_id: f"from round {row.round}: {row.reason}" for row in session.exec(query)}


def _rounds(session: Session, run_id: str) -> tuple[RoundView, ...]:
    rows = session.exec(select(Round).where(Round.run_id == run_id).order_by(col(Round.number)))
    return tuple(
        RoundView(row.number, row.started_at, row.finished_at, row.sampled, row.contributors, row.accuracy, row.loss, row.reason)
        for row in rows
    )


def _references(row: Run, final: float | None) -> tuple[ReferenceView, ...]:
    views = []
    for name, told in sorted(row.references.items()):
        by_round = _by_round(told, row.rounds_total)
        if by_round:
            last = by_round[max(by_round)]
            price = final - last if final is not None else None
            views.append(ReferenceView(_REFERENCES.get(name, name.replace("_", " ").capitalize()), by_round, last, price))
    return tuple(sorted(views, key=lambda each: each.final))


def _by_round(told: Any, rounds: int) -> dict[int, float]:
    """A reference is an accuracy a round; with one more than there are rounds it begins at round 0."""
    if not isinstance(told, list):
        return {}
    first = 0 if len(told) > rounds else 1
    return {number: float(value) for number, value in enumerate(told, start=first) if isinstance(value, int | float)}


def _releases(session: Session, run_id: str) -> tuple[ReleaseRef, ...]:
    rows = session.exec(select(Release).where(Release.run_id == run_id).order_by(col(Release.id).desc()))
    return tuple(ReleaseRef(row.id or 0, f"{row.model} v{row.version}", row.state.value) for row in rows)


def _pairs(values: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    return tuple((key.replace("_", " "), f"{value:g}" if isinstance(value, float) else str(value)) for key, value in values.items())


def _percent(value: float | None) -> float | None:
    return None if value is None else round(100 * value, 2)
