"""The privacy ledger: events are appended, epsilon is recomputed from them, nothing else is kept.

    charge = append_charge(session, device="pi-1", dataset="digits", run=run.id, round_number=3, plan=plan, at=now)
    epsilon(session, device="pi-1", dataset="digits", delta=1e-4)

Rules:
- A charge is appended and committed before anything is asked of a participant.
- A participant trains a round at most once, and sends the same bytes when it is asked again; so a round is charged once, however
  often it is asked for.
- Only the participant's own word that it did not train takes a charge back. Silence never does.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlmodel import Session, col, select

from covey_contract.messages import PrivacyPlan
from covey_server.errors import ConflictError, NotFoundError
from covey_server.privacy import accounting
from covey_server.privacy.accounting import Mechanism
from covey_server.privacy.models import PrivacyEvent, PrivacyEventKind
from covey_server.privacy.rules import mechanism_of


@dataclass(frozen=True, slots=True)
class Account:
    """What one participant's dataset has been used for, and what that costs now."""

    device: str
    dataset: str
    delta: float
    epsilon: float
    rounds: int  # charges that stand
    voided: int


def append_charge(
    session: Session, *, device: str, dataset: str, run: str, round_number: int, plan: PrivacyPlan, at: datetime
) -> PrivacyEvent:
    """Charge one round to one participant; the standing charge if there is one. Raises ConflictError if that was for another plan."""
    known = find_charge(session, device=device, run=run, round_number=round_number)
    event = PrivacyEvent(
        at=at, device_id=device, dataset=dataset, run_id=run, round=round_number, level=plan.level, noise_multiplier=plan.noise_multiplier,
        clipping_norm=plan.clipping_norm, sample_rate=plan.sample_rate, steps=plan.steps, delta=plan.delta,
    )  # fmt: skip
    if known is not None:
        if _mechanism(known) != _mechanism(event) or known.dataset != dataset:
            raise ConflictError(f"round {round_number} of run {run} is charged to {device} for another plan")
        return known
    session.add(event)
    session.flush()
    return event


def append_void(session: Session, charge: PrivacyEvent, *, reason: str, at: datetime) -> PrivacyEvent:
    """Take a charge back because the participant said that it did not train. Raises ConflictError if that is done already."""
    if charge.kind is not PrivacyEventKind.CHARGE or charge.id is None:
        raise ConflictError("only a charge can be voided")
    if session.exec(select(PrivacyEvent).where(PrivacyEvent.voids == charge.id)).first() is not None:
        raise ConflictError(f"charge {charge.id} is void already")
    event = PrivacyEvent(
        at=at, kind=PrivacyEventKind.VOID, device_id=charge.device_id, dataset=charge.dataset, run_id=charge.run_id, round=charge.round,
        level=charge.level, noise_multiplier=charge.noise_multiplier, clipping_norm=charge.clipping_norm, sample_rate=charge.sample_rate,
        steps=charge.steps, delta=charge.delta, voids=charge.id, reason=reason,
    )  # fmt: skip
    session.add(event)
    session.flush()
    return event


def find_charge(session: Session, *, device: str, run: str, round_number: int) -> PrivacyEvent | None:
    """The standing charge of one round at one participant."""
    query = select(PrivacyEvent).where(PrivacyEvent.device_id == device, PrivacyEvent.run_id == run, PrivacyEvent.round == round_number)
    return next(iter(_standing(session.exec(query).all())), None)


def mechanisms_of(session: Session, *, device: str, dataset: str, run: str | None = None) -> list[Mechanism]:
    """What stands in the ledger for one participant's dataset, of one run or of all."""
    query = select(PrivacyEvent).where(PrivacyEvent.device_id == device, PrivacyEvent.dataset == dataset)
    if run is not None:
        query = query.where(PrivacyEvent.run_id == run)
    return [_mechanism(event) for event in _standing(session.exec(query).all())]


def epsilon(session: Session, *, device: str, dataset: str, delta: float, run: str | None = None) -> float:
    """Epsilon at `delta` of everything that stands, recomputed; infinite if one round was without noise."""
    return accounting.epsilon_of(mechanisms_of(session, device=device, dataset=dataset, run=run), delta=delta)


def list_events(
    session: Session, *, device: str | None = None, dataset: str | None = None, run: str | None = None, after: int = 0, limit: int = 100
) -> list[PrivacyEvent]:
    """Events in the order in which they were appended."""
    query = select(PrivacyEvent).where(col(PrivacyEvent.id) > after)
    if device is not None:
        query = query.where(PrivacyEvent.device_id == device)
    if dataset is not None:
        query = query.where(PrivacyEvent.dataset == dataset)
    if run is not None:
        query = query.where(PrivacyEvent.run_id == run)
    return list(session.exec(query.order_by(col(PrivacyEvent.id)).limit(limit)))


def list_accounts(session: Session, *, delta: float | None = None, run: str | None = None) -> list[Account]:
    """Each participant's dataset with its epsilon, at `delta` or at the delta of its newest charge.

    With `run`, only those that the run charged, and only what that run cost.
    """
    query = select(PrivacyEvent).order_by(col(PrivacyEvent.id))
    if run is not None:
        query = query.where(PrivacyEvent.run_id == run)
    events: dict[tuple[str, str], list[PrivacyEvent]] = {}
    for event in session.exec(query):
        events.setdefault((event.device_id, event.dataset), []).append(event)
    return [_account(device, dataset, found, delta) for (device, dataset), found in sorted(events.items())]


def get_event(session: Session, event_id: int) -> PrivacyEvent:
    """One event. Raises NotFoundError."""
    event = session.get(PrivacyEvent, event_id)
    if event is None:
        raise NotFoundError("privacy event", event_id)
    return event


def _account(device: str, dataset: str, events: Sequence[PrivacyEvent], delta: float | None) -> Account:
    standing = _standing(events)
    used = delta if delta is not None else next((event.delta for event in reversed(events) if event.delta > 0), 1e-5)
    return Account(
        device=device,
        dataset=dataset,
        delta=used,
        epsilon=accounting.epsilon_of([_mechanism(event) for event in standing], delta=used),
        rounds=len(standing),
        voided=sum(1 for event in events if event.kind is PrivacyEventKind.VOID),
    )


def _standing(events: Sequence[PrivacyEvent]) -> list[PrivacyEvent]:
    voided = {event.voids for event in events if event.kind is PrivacyEventKind.VOID}
    return [event for event in events if event.kind is PrivacyEventKind.CHARGE and event.id not in voided]


def _mechanism(event: PrivacyEvent) -> Mechanism:
    plan = PrivacyPlan(
        level=event.level,
        noise_multiplier=event.noise_multiplier,
        clipping_norm=event.clipping_norm,
        sample_rate=event.sample_rate,
        steps=event.steps,
        delta=event.delta,
    )
    return mechanism_of(plan)
