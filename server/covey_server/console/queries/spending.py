"""What participants have spent of their privacy: always recomputed from the ledger's events by the privacy service."""

from dataclasses import dataclass
from datetime import datetime
from math import isfinite

from sqlmodel import Session, col, select

from covey_server.privacy.models import PrivacyEvent
from covey_server.privacy.service import Account, list_accounts
from covey_server.telemetry.models import ReadingRow

PAGE_SIZE = 50
_TRAINING_READINGS = 50  # how far back a participant's own word on its budget is looked for


@dataclass(frozen=True, slots=True)
class Spending:
    """What one participant has spent on one dataset."""

    device_id: str
    dataset: str
    epsilon: float
    delta: float
    charges: int  # that stand
    voids: int
    budget: float | None  # if the participant told it

    @property
    def share(self) -> float | None:
        """Part of the budget that is spent."""
        return self.epsilon / self.budget if self.budget else None

    @property
    def scale(self) -> float:
        """The length that a bar must have to show both what is spent and what is allowed."""
        return max(self.budget or 0.0, self.epsilon if isfinite(self.epsilon) else 0.0)


@dataclass(frozen=True, slots=True)
class EventLine:
    """One event of the ledger."""

    id: int
    at: datetime
    kind: str
    device_id: str
    dataset: str
    run_id: str
    round: int
    level: str
    noise_multiplier: float
    clipping_norm: float
    sample_rate: float
    steps: int
    delta: float
    voids: int | None
    reason: str


@dataclass(frozen=True, slots=True)
class EventPage:
    """One page of events, newest first."""

    lines: tuple[EventLine, ...]
    next: int  # id behind which the next page begins, 0 at the end


def ledger_spending(session: Session) -> tuple[Spending, ...]:
    """Every participant and dataset of the ledger. Slow the first time after a new charge: about a second for each composition."""
    return tuple(_spending(session, account) for account in list_accounts(session))


def run_spending(session: Session, run_id: str) -> tuple[Spending, ...]:
    """What the participants of a run have spent on its dataset, in all runs together: that is what a budget bounds."""
    of_run = {(account.device, account.dataset) for account in list_accounts(session, run=run_id)}
    return tuple(_spending(session, account) for account in list_accounts(session) if (account.device, account.dataset) in of_run)


def list_events(session: Session, *, before: int = 0, device_id: str = "") -> EventPage:
    """Events of the ledger."""
    query = select(PrivacyEvent).order_by(col(PrivacyEvent.id).desc()).limit(PAGE_SIZE + 1)
    if device_id:
        query = query.where(PrivacyEvent.device_id == device_id)
    rows = session.exec(query.where(col(PrivacyEvent.id) < before) if before else query).all()
    lines = tuple(_event(row) for row in rows[:PAGE_SIZE])
    return EventPage(lines, lines[-1].id if len(rows) > PAGE_SIZE else 0)


def _spending(session: Session, account: Account) -> Spending:
    return Spending(
        device_id=account.device,
        dataset=account.dataset,
        epsilon=account.epsilon,
        delta=account.delta,
        charges=account.rounds,
        voids=account.voided,
        budget=_budget(session, account.device),
    )


def _budget(session: Session, device_id: str) -> float | None:
    query = (
        select(ReadingRow)
        .where(ReadingRow.device_id == device_id, ReadingRow.kind == "training")
        .order_by(col(ReadingRow.at).desc())
        .limit(_TRAINING_READINGS)
    )
    for row in session.exec(query):
        budget = row.values.get("budget")
        if isinstance(budget, int | float) and budget > 0:
            return float(budget)
    return None


def _event(row: PrivacyEvent) -> EventLine:
    return EventLine(
        id=row.id or 0,
        at=row.at,
        kind=row.kind.value,
        device_id=row.device_id,
        dataset=row.dataset,
        run_id=row.run_id,
        round=row.round,
        level=row.level,
        noise_multiplier=row.noise_multiplier,
        clipping_norm=row.clipping_norm,
        sample_rate=row.sample_rate,
        steps=row.steps,
        delta=row.delta,
        voids=row.voids,
        reason=row.reason,
    )
