"""The train child: be a Flower SuperNode for one run, and ask the agent before each round.

    python -m covey_agent.workers.train      (a TrainJob on standard input, RoundDecisions after it)

In order: verify the signed invitation through TUF; fetch the task's code, whose sha256 is the one invited; connect to the fleet
edge with the fleet's CA and this participant's own key; answer rounds until the agent closes standard input (it does when the
run has ended). The agent's policy allowed the digest and the data set before this child was started, and allows each round.
"""

import logging
import queue
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path

from covey_agent.core.jobs import AskRound, RoundDecision, RoundTrained, TrainEnded, TrainJob, TrainReady
from covey_agent.workers.errors import RefusedError, WorkerError
from covey_agent.workers.lines import Lines
from covey_agent.workers.link import BulkLink
from covey_agent.workers.training.process import prepare
from covey_agent.workers.trust import TrustedMetadata
from covey_contract.codec import decode
from covey_contract.messages import InviteToRun, Signed

logger = logging.getLogger(__name__)

_RECENT_ROUNDS = "training"


class Agent:
    """The agent at the other end of the standard streams; sets `stop` when it has gone or wants the end."""

    def __init__(self, lines: Lines, stop: threading.Event) -> None:
        self._lines = lines
        self._stop = stop
        self._decisions: queue.Queue[RoundDecision | None] = queue.Queue()
        threading.Thread(target=self._read, name="stdin", daemon=True).start()

    def ask(self, question: AskRound) -> RoundDecision:
        """Ask and wait. A decision about another round is not an answer. Raises RefusedError if the agent goes away."""
        self._lines.emit(question)
        while (decision := self._decisions.get()) is not None:
            if (decision.run, decision.round) == (question.run, question.round):
                return decision
            logger.warning("a decision about round %d came while waiting for round %d", decision.round, question.round)
        raise RefusedError("the agent ended the run before it decided")

    def told(self, event: RoundTrained) -> None:
        """Pass on that a round was trained."""
        self._lines.emit(event)

    def _read(self) -> None:
        for order in self._lines.orders():
            if isinstance(order, RoundDecision):
                self._decisions.put(order)
        self._stop.set()
        self._decisions.put(None)


def main() -> None:
    """Run one job."""
    prepare()
    lines = Lines.take_over()
    job = lines.read_job(TrainJob)
    stop = threading.Event()
    agent = Agent(lines, stop)
    run = ""
    try:
        invitation, code = _verify(job)
        run = invitation.run
        _serve(job, invitation, code, agent=agent, lines=lines, stop=stop)
    except WorkerError as exc:
        lines.emit(TrainEnded(run=run, reason=str(exc), ok=False))
        sys.exit(1)
    lines.emit(TrainEnded(run=run, reason="the agent ended the run", ok=True))


def _verify(job: TrainJob) -> tuple[InviteToRun, bytes]:
    """The invitation and the task's code, both believed. Raises WorkerError."""
    with BulkLink(job.broker, role="train") as link:
        trusted = TrustedMetadata(Path(job.state_dir), link.fetch_part)
        trusted.refresh()
        order = trusted.verify_order(decode(job.order, Signed), device=job.broker.device, now=datetime.now(UTC))
        if not isinstance(order, InviteToRun):
            raise RefusedError(f"expected an invitation to a run, got {type(order).__name__}")
        return order, trusted.fetch_task(order.task, order.task_digest)


def _serve(job: TrainJob, invitation: InviteToRun, code: bytes, *, agent: Agent, lines: Lines, stop: threading.Event) -> None:
    # Imported here, after the environment is set and the order is believed: torch and flwr take seconds and 400 MB.
    from cryptography.hazmat.primitives.asymmetric import ec  # noqa: PLC0415 - see above
    from cryptography.hazmat.primitives.serialization import load_ssh_private_key  # noqa: PLC0415 - see above

    from covey_agent.workers.training.contributions import Contributions  # noqa: PLC0415 - see above
    from covey_agent.workers.training.messages import answer_message  # noqa: PLC0415 - see above
    from covey_agent.workers.training.node import FleetLink, serve  # noqa: PLC0415 - see above
    from covey_agent.workers.training.rounds import RoundTrainer  # noqa: PLC0415 - see above
    from covey_agent.workers.training.steps import bind_plan  # noqa: PLC0415 - see above
    from covey_agent.workers.training.task_code import load_task  # noqa: PLC0415 - see above

    if invitation.dataset not in job.data:
        raise RefusedError(f"there is no dataset {invitation.dataset!r} on this machine")
    trainer = RoundTrainer(
        invitation=invitation,
        task=load_task(code, digest=invitation.task_digest),
        train_round=bind_plan(invitation.plan, invitation.hyperparameters),
        data_path=job.data[invitation.dataset],
        agent=agent,
        contributions=Contributions(Path(job.state_dir) / _RECENT_ROUNDS / invitation.run),
    )
    key = load_ssh_private_key(Path(job.supernode_key).read_bytes(), password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise RefusedError("the SuperNode key is not an elliptic curve key")
    with FleetLink.join(job.fleet_api, ca=Path(job.broker.ca_file).read_bytes(), key=key) as link:
        lines.emit(TrainReady(node=link.node_id))
        serve(link, handle=lambda message: answer_message(message, trainer), stop=stop)


if __name__ == "__main__":
    main()
