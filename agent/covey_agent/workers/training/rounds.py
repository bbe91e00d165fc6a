"""One round at a participant: ask, be charged, only then touch data, keep the result, only then send it.

    answer = RoundTrainer(...).answer(run, number, weights)

Rules:
- The plan is the one of the signed invitation. Nothing in a round's message can change clipping, noise, sampling or steps.
- Without a yes from the agent, which charges its ledger before it says yes, the data file is not opened.
- A refusal carries a reason and no trained content. It says that nothing of this round ever left this machine, so the server
  takes its charge back. Where that is not certain the answer is withheld instead, and the charge stands.
- A round is released at most once: never from other weights, and never again after a later one was trained.
- An answer carries the noisy change of the weights, the plan's number of steps and the time it took: nothing that was computed
  from records without noise. Loss and accuracy on own records stay here.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from covey_agent.core.jobs import AskRound, RoundDecision, RoundTrained
from covey_agent.workers.errors import StorageError, WorkerError
from covey_agent.workers.training.contributions import Contributions
from covey_agent.workers.training.task_code import Task
from covey_agent.workers.training.weights import Weights, fingerprint
from covey_contract.messages import InviteToRun

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Trained:
    """A contribution."""

    change: Weights
    steps: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Refused:
    """No contribution; nothing of this round has left this machine."""

    reason: str


@dataclass(frozen=True, slots=True)
class Withheld:
    """No contribution now, but one of this round has left this machine, or may have."""

    reason: str


TrainRound = Callable[[Task, Weights, Any, Any], Weights]  # (task, weights, x, y) -> change; knows the plan


class Asker(Protocol):
    """The agent, which decides."""

    def ask(self, question: AskRound) -> RoundDecision:
        """Wait for the decision; a yes is charged already."""
        ...

    def told(self, event: RoundTrained) -> None:
        """Tell the agent that a contribution is about to be sent."""
        ...


@dataclass(frozen=True, slots=True)
class RoundTrainer:
    """Answers the rounds of one run."""

    invitation: InviteToRun
    task: Task
    train_round: TrainRound
    data_path: str
    agent: Asker
    contributions: Contributions
    clock: Callable[[], float] = time.monotonic

    def answer(self, run: str, number: int, weights: Weights) -> Trained | Refused | Withheld:
        """Train one round or refuse it; never raises for what a round's message says."""
        invitation = self.invitation
        if run != invitation.run or not 1 <= number <= invitation.rounds:
            return Refused(f"expected a round 1 to {invitation.rounds} of run {invitation.run}, got round {number} of run {run!r:.80}")
        try:
            began_from = fingerprint(weights)
            return self._again(number, began_from) or self._train(number, weights, began_from)
        except WorkerError as exc:
            return Refused(str(exc)[:500])
        except Exception as exc:  # noqa: BLE001 - a task's code may raise anything, and the run's other rounds shall go on
            logger.error("round %d: the task's code failed: %s", number, type(exc).__name__)  # noqa: TRY400 - its text could quote data
            return Refused(f"the task's code failed: {type(exc).__name__}")

    def _again(self, number: int, began_from: str) -> Trained | Withheld | None:
        """The answer to a round that was trained here, or before one that was; None: it may be trained."""
        try:
            kept, newest = self.contributions.find(number), self.contributions.newest()
        except StorageError as exc:
            return Withheld(str(exc)[:500])
        if kept is not None and kept[0] == began_from:
            return Trained(kept[1], steps=self.invitation.plan.steps, seconds=0.0)
        # Training the same round from other weights would be a second release under one charge.
        if kept is not None:
            return Withheld(f"round {number} was already trained here from other weights")
        return Withheld(f"round {newest} was trained here already; round {number} is not trained after it") if number < newest else None

    def _train(self, number: int, weights: Weights, began_from: str) -> Trained | Refused:
        invitation = self.invitation
        decision = self.agent.ask(AskRound(run=invitation.run, round=number, dataset=invitation.dataset, plan=invitation.plan))
        if not decision.allowed:
            return Refused(decision.reason)
        begin = self.clock()
        try:
            x, y = self.task.load_data(self.data_path)
        except (OSError, ValueError, KeyError) as exc:
            return Refused(f"dataset {invitation.dataset} cannot be read: {type(exc).__name__}")  # its text could quote data
        change = self.train_round(self.task, weights, x, y)
        self.contributions.keep(number, began_from=began_from, change=change)
        seconds = self.clock() - begin
        values: dict[str, int | float | str] = {"seconds": round(seconds, 3), "steps": invitation.plan.steps, "epsilon": decision.epsilon}
        self.agent.told(RoundTrained(run=invitation.run, round=number, values=values))
        return Trained(change, steps=invitation.plan.steps, seconds=seconds)
