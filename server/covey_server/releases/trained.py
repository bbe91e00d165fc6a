"""What a run leaves behind, gathered for a release: weights, code, and the lineage with what it cost each participant."""

import math
from pathlib import Path

from sqlmodel import Session

from covey_contract.limits import MAX_REASON_CHARS
from covey_contract.release import Lineage
from covey_server.errors import InvalidInputError
from covey_server.federation import service as federation
from covey_server.federation.models import ContributionState
from covey_server.privacy import service as privacy
from covey_server.releases.imports import TrainedModel


def trained_model(session: Session, run_id: str) -> tuple[TrainedModel, Path | None]:
    """A run's result and the path of its held-out data, if it has any. Raises NotFoundError, or InvalidInputError without weights."""
    run = federation.get_run(session, run_id)
    if not run.checkpoint:
        raise InvalidInputError(f"run {run_id} is {run.state.value} and has no weights yet")
    task = federation.task_of(session, run)
    trained = TrainedModel(
        run=run.id,
        model=run.model or task.name,
        checkpoint=run.checkpoint,
        task=task.digest,
        labels=tuple(task.labels),
        lineage=_lineage(session, run_id, rounds=run.rounds_done),
    )
    return trained, Path(run.held_out) if run.held_out else None


def _lineage(session: Session, run_id: str, *, rounds: int) -> Lineage:
    accounts = privacy.list_accounts(session, run=run_id)
    contributors = {row.device_id for row in federation.contributions_of(session, run_id) if row.state is ContributionState.RECEIVED}
    epsilon: dict[str, float] = {}
    for account in accounts:
        epsilon[account.device] = max(account.epsilon, epsilon.get(account.device, 0.0))
    # JSON has no infinity, and a missing number must not look like a small one.
    unprotected = sorted(device for device, value in epsilon.items() if not math.isfinite(value))
    note = f"no privacy guarantee for {', '.join(unprotected)}"[:MAX_REASON_CHARS] if unprotected else ""
    return Lineage(
        source="run",
        run=run_id,
        rounds=rounds,
        participants=len(contributors),
        epsilon={device: value for device, value in sorted(epsilon.items()) if math.isfinite(value)},
        delta=max((account.delta for account in accounts), default=0.0),
        note=note,
    )
