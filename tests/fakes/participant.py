"""A participant without MQTT: the real SuperNode and the real round answers, with a scripted agent.

    python participant.py <job.json>

The job names the fleet edge, CA, key, invitation, task and data, and the rounds that this agent refuses. What the agent was asked
and told is written to standard output, one JSON object a line.
"""

import json
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import msgspec
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key

from covey_agent.core.jobs import AskRound, RoundDecision, RoundTrained
from covey_agent.workers.errors import WorkerError
from covey_agent.workers.training.contributions import Contributions
from covey_agent.workers.training.messages import answer_message
from covey_agent.workers.training.node import FleetLink, serve
from covey_agent.workers.training.process import prepare
from covey_agent.workers.training.rounds import RoundTrainer
from covey_agent.workers.training.steps import bind_plan
from covey_agent.workers.training.task_code import load_task
from covey_contract.messages import InviteToRun


class ScriptedAgent:
    """Refuses what the job says, allows the rest."""

    def __init__(self, refused: list[int]) -> None:
        self._refused = refused

    def ask(self, question: AskRound) -> RoundDecision:
        """Answer as the job says."""
        allowed = question.round not in self._refused
        _tell("asked", round=question.round, allowed=allowed)
        return RoundDecision(run=question.run, round=question.round, allowed=allowed, reason="" if allowed else "over budget", epsilon=1.0)

    def told(self, event: RoundTrained) -> None:
        """Note it."""
        _tell("trained", round=event.round, **event.values)


def main() -> None:
    """Serve until SIGTERM."""
    prepare()
    job = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    key = load_ssh_private_key(Path(job["key"]).read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    invitation = msgspec.convert(job["invitation"], InviteToRun)
    trainer = RoundTrainer(
        invitation=invitation,
        task=load_task(Path(job["task"]).read_bytes(), digest=invitation.task_digest),
        train_round=bind_plan(invitation.plan, invitation.hyperparameters),
        data_path=job["data"],
        agent=ScriptedAgent(job["refused"]),
        contributions=Contributions(Path(job["state"])),
    )
    try:
        with FleetLink.join(job["fleet_api"], ca=Path(job["ca"]).read_bytes(), key=key) as link:
            _tell("joined", node=link.node_id)
            serve(link, handle=lambda message: answer_message(message, trainer), stop=stop)
    except WorkerError as exc:
        _tell("ended", reason=str(exc))


def _tell(what: str, **more: Any) -> None:
    sys.stdout.write(json.dumps({"what": what, **more}) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
