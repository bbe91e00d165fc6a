"""The ledger over REST: /api/v1/ledger and /api/v1/ledger/participants."""

import math
from datetime import datetime
from typing import Annotated, Self

from fastapi import APIRouter, Query
from pydantic import Field

from covey_server.access.guard import Viewer
from covey_server.api_deps import ApiView, Page, PageQuery, ReadSession, problems
from covey_server.privacy import service
from covey_server.privacy.models import PrivacyEvent, PrivacyEventKind

router = APIRouter(prefix="/ledger", tags=["ledger"])


class EventView(ApiView):
    """One event of the ledger."""

    id: int
    at: datetime
    kind: PrivacyEventKind = Field(description="charge: appended before a participant is asked; void: it said that it did not train")
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
    voids: int | None = Field(description="the charge that a void takes back")
    reason: str

    @classmethod
    def of(cls, event: PrivacyEvent) -> Self:
        """From a row."""
        return cls.model_validate(event, from_attributes=True)


class AccountView(ApiView):
    """What one participant's dataset has cost, recomputed now from the ledger."""

    device: str
    dataset: str
    delta: float
    epsilon: float | None = Field(description="null: without any guarantee, because a round was trained without noise")
    rounds: int = Field(description="charged rounds that stand")
    voided: int = Field(description="charges taken back because the participant said that it did not train")


class AccountList(ApiView):
    """All accounts."""

    items: list[AccountView]


@router.get("", responses=problems(422), summary="Events of the privacy ledger, oldest first")
def list_events(
    _: Viewer,
    session: ReadSession,
    page: PageQuery,
    device: Annotated[str | None, Query(description="only this participant", max_length=64)] = None,
    dataset: Annotated[str | None, Query(description="only this dataset", max_length=64)] = None,
    run: Annotated[str | None, Query(description="only this run", max_length=64)] = None,
) -> Page[EventView]:
    """Charges and voids. Rows are only ever added."""
    found = service.list_events(session, device=device, dataset=dataset, run=run, after=page.after_id(0), limit=page.limit + 1)
    return Page.cut([EventView.of(event) for event in found], page, key=lambda view: (view.id,))


@router.get("/participants", responses=problems(422), summary="Epsilon per participant and dataset")
def list_participants(
    _: Viewer,
    session: ReadSession,
    delta: Annotated[float | None, Query(description="at this delta; default: that of the newest charge", gt=0, lt=1)] = None,
    run: Annotated[str | None, Query(description="only what this run cost", max_length=64)] = None,
) -> AccountList:
    """Recomputed from the events by PLD accounting on every call; never stored."""
    return AccountList(items=[_view(account) for account in service.list_accounts(session, delta=delta, run=run)])


def _view(account: service.Account) -> AccountView:
    return AccountView(
        device=account.device,
        dataset=account.dataset,
        delta=account.delta,
        epsilon=account.epsilon if math.isfinite(account.epsilon) else None,
        rounds=account.rounds,
        voided=account.voided,
    )
