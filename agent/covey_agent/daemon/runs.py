"""Training runs: the policy decides on the invitation and on every round; the trainer is a child that lives as long as its run.

Rules:
- A round's charge is in the ledger, on the disk, before the trainer hears yes.
- One run at a time. A run survives the agent's restart and the trainer's death: the same invitation starts the trainer again.
- Policy and data sets are read at each decision, so that withdrawing consent takes effect with the next round.
"""

import logging
from collections.abc import Callable

import msgspec

from covey_agent.core.backoff import TRAINER_RESTART
from covey_agent.core.jobs import AskRound, ChildEvent, RoundDecision, RoundTrained, TrainEnded, TrainJob, TrainReady
from covey_agent.core.policy import Decision, EpsilonOf, decide_invitation, decide_round
from covey_agent.daemon.deployments import Audience
from covey_agent.daemon.kit import Kit
from covey_agent.daemon.readings import Readings
from covey_agent.daemon.replies import Replies
from covey_agent.errors import CoveyAgentError, StoreError, UsageError
from covey_agent.ports import Child, LedgerStore
from covey_agent.settings import Consent
from covey_contract.codec import decode, decode_order
from covey_contract.errors import ContractError
from covey_contract.messages import InviteToRun, Outcome, Priority, Scalar, Signed

logger = logging.getLogger(__name__)
KEY_RUN = "run"
STOP_GRACE_S = 30.0


class ActiveRun(msgspec.Struct, frozen=True):
    """The run that this participant has joined, as it stands in the database."""

    order: bytes  # the signed invitation
    restarts: int = 0


class Runs:
    """The run that is active here, if any."""

    def __init__(
        self,
        kit: Kit,
        *,
        ledger: LedgerStore,
        replies: Replies,
        readings: Readings,
        audience: Audience,
        consent: Callable[[], Consent],
        epsilon_of: EpsilonOf,
    ) -> None:
        self._kit = kit
        self._ledger = ledger
        self._replies = replies
        self._readings = readings
        self._audience = audience
        self._consent = consent
        self._epsilon_of = epsilon_of
        self._active: ActiveRun | None = None
        self._invite: InviteToRun | None = None
        self._child: Child | None = None

    @property
    def training(self) -> str:
        """The run that is active here, or ""."""
        return self._invite.run if self._invite else ""

    def boot(self) -> None:
        """Go on with a run that was active when the agent ended."""
        stored = self._kit.store.load(KEY_RUN)
        if stored is None:
            return
        try:
            active = msgspec.json.decode(stored, type=ActiveRun)
            invite = decode_order(decode(active.order, Signed))
        except (msgspec.DecodeError, ContractError):
            logger.exception("the stored run is unreadable; it is given up")
            self._kit.store.save({KEY_RUN: None})
            return
        if isinstance(invite, InviteToRun):
            self._active, self._invite = active, invite
            self._start()

    def invited(self, invite: InviteToRun, order: bytes) -> None:
        """Decide, remember, answer, and if accepted start the trainer."""
        decision = self._decide_invitation(invite)
        if not decision.allowed:
            logger.info("invitation to run %s refused: %s", invite.run, decision.reason)
            self._replies.give(invite.id, Outcome.REFUSED, expires_at=invite.expires_at, reason=decision.reason)
            return
        logger.info("invitation to run %s accepted", invite.run)
        self._active, self._invite = ActiveRun(order=order), invite
        self._kit.store.save({KEY_RUN: msgspec.json.encode(self._active)})
        self._replies.give(
            invite.id, Outcome.ACCEPTED, expires_at=invite.expires_at, reason=decision.reason, values={"epsilon": decision.epsilon}
        )
        self._audience.state_changed()
        self._start()

    def stop(self, run: str, reason: str) -> bool:
        """End a run; False if it is not the active one."""
        if self._invite is None or self._invite.run != run:
            return False
        logger.info("run %s ends here: %s", run, reason)
        child, self._child = self._child, None
        if child is not None:
            child.close_input()  # it finishes by itself; past the grace it is killed
            self._kit.nursery.extend(child, STOP_GRACE_S)
        self._clear()
        return True

    def child_spoke(self, child: Child, event: ChildEvent) -> None:
        """An event of the trainer."""
        if child is not self._child or self._invite is None:
            return
        match event:
            case TrainReady():
                logger.info("joined run %s as node %s", self._invite.run, event.node)
            case AskRound():
                self._answer(child, event)
            case RoundTrained():
                values = {"run": event.run, "round": event.round, **event.values, **self._told_budget(self._invite.dataset)}
                self._readings.add("training", values, priority=Priority.RESULT)
            case TrainEnded():
                self._ended(event)
            case _:
                logger.warning("a trainer sent an unexpected %s", type(event).__name__)

    def child_ended(self, child: Child, reason: str, *, clean: bool) -> None:
        """The trainer is gone without having said that the run is over: start it again, for a while."""
        if child is not self._child or self._active is None or self._invite is None:
            return
        self._child = None
        restarts = self._active.restarts + 1
        self._audience.alarm_raised("trainer_died", reason)
        if restarts > self._kit.settings.training.max_restarts:
            self._fail(f"the trainer died {restarts} times, at last: {reason}")
            return
        self._active = ActiveRun(order=self._active.order, restarts=restarts)
        self._kit.store.save({KEY_RUN: msgspec.json.encode(self._active)})
        self._kit.timers.set("trainer-restart", TRAINER_RESTART.delay_s(restarts, self._kit.random), self._start)

    def _start(self) -> None:
        if self._active is None or self._invite is None or self._child is not None:
            return
        try:
            datasets = self._consent().datasets
        except UsageError as exc:
            self._fail(str(exc))
            return
        job = TrainJob(
            state_dir=str(self._kit.state_dir),
            broker=self._kit.identity.broker,
            order=self._active.order,
            fleet_api=self._invite.fleet_api or self._kit.identity.file.fleet_api,
            supernode_key=self._kit.identity.supernode_key,
            data={name: path for name, path in datasets.items() if name == self._invite.dataset},
        )
        self._child = self._kit.nursery.start(self, "train", job, memory_limit_mb=self._kit.settings.training.memory_limit_mb)

    def _decide_invitation(self, invite: InviteToRun) -> Decision:
        if self._invite is not None and self._invite.run != invite.run:
            return Decision(allowed=False, reason=f"busy with run {self._invite.run}")
        try:
            consent = self._consent()
            return decide_invitation(
                invite,
                consent.policy,
                ledger=self._ledger.charges(),
                datasets=consent.datasets,
                now=self._kit.clock.now(),
                epsilon_of=self._epsilon_of,
            )
        except (CoveyAgentError, ValueError) as exc:
            return Decision(allowed=False, reason=str(exc))

    def _answer(self, child: Child, ask: AskRound) -> None:
        decision = self._decide_round(ask)
        if decision.allowed and decision.charge is not None:
            try:
                self._ledger.append_charge(decision.charge)
            except StoreError as exc:
                logger.exception("the ledger cannot be written, so nothing is trained")
                decision = Decision(allowed=False, reason=f"the ledger cannot be written: {exc}")
        logger.info("round %d of run %s: %s (%s)", ask.round, ask.run, "yes" if decision.allowed else "no", decision.reason)
        child.send(RoundDecision(run=ask.run, round=ask.round, allowed=decision.allowed, reason=decision.reason, epsilon=decision.epsilon))

    def _told_budget(self, dataset: str) -> dict[str, Scalar]:
        """The participant's own limit, so that operators see how much of it is left."""
        try:
            budget = self._consent().policy.budgets.get(dataset)
        except UsageError:
            return {}
        return {"budget": budget.epsilon} if budget else {}

    def _decide_round(self, ask: AskRound) -> Decision:
        if self._invite is None:
            return Decision(allowed=False, reason="no run is active here")
        try:
            return decide_round(
                ask,
                self._invite,
                self._consent().policy,
                ledger=self._ledger.charges(),
                now=self._kit.clock.now(),
                epsilon_of=self._epsilon_of,
            )
        except (CoveyAgentError, ValueError) as exc:
            return Decision(allowed=False, reason=str(exc))

    def _ended(self, event: TrainEnded) -> None:
        child, self._child = self._child, None
        if child is not None:
            self._kit.nursery.extend(child, STOP_GRACE_S)
        if event.ok:
            logger.info("run %s is over: %s", event.run, event.reason)
            self._clear()
        else:
            self._fail(event.reason)

    def _fail(self, reason: str) -> None:
        """The participant accepted and cannot go on: the server hears it as a new answer to the same invitation."""
        invite = self._invite
        self._clear()
        if invite is not None:
            logger.warning("run %s failed here: %s", invite.run, reason)
            self._replies.give(invite.id, Outcome.FAILED, expires_at=invite.expires_at, reason=reason)

    def _clear(self) -> None:
        self._active = self._invite = None
        self._kit.timers.cancel("trainer-restart")
        self._kit.store.save({KEY_RUN: None})
        self._audience.state_changed()
