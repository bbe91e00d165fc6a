"""Stands in for the train child: asks the agent for each round of the run and notes, outside of the state directory, what it may do.

A round that is allowed is one whose charge must be in the ledger for ever: the note is written only after the answer came.
"""

import os
from pathlib import Path

from covey_agent.core.jobs import AskRound, RoundDecision, RoundTrained, TrainEnded, TrainJob, TrainReady
from covey_agent.workers.lines import Lines
from covey_contract.codec import decode, decode_order
from covey_contract.messages import InviteToRun, Signed

NOTES = "COVEY_KILLS_ROUNDS"  # names the file of notes


def main() -> None:
    """Run one job; a round that was trained before the last start is not asked for again, as a server would not ask."""
    lines = Lines.take_over()
    job = lines.read_job(TrainJob)
    order = decode_order(decode(job.order, Signed))
    if not isinstance(order, InviteToRun):
        raise SystemExit(2)
    notes = Path(os.environ[NOTES])
    done = {int(line.split()[0]) for line in notes.read_text().splitlines()} if notes.exists() else set()
    lines.emit(TrainReady(node="1"))
    decisions = lines.orders()
    for number in range(1, order.rounds + 1):
        if number not in done:
            lines.emit(AskRound(run=order.run, round=number, dataset=order.dataset, plan=order.plan))
            decision = next(decisions, None)
            if not isinstance(decision, RoundDecision):
                raise SystemExit(1)
            with notes.open("a") as file:
                file.write(f"{number} {'allowed' if decision.allowed else 'refused'} {decision.reason}\n")
        lines.emit(RoundTrained(run=order.run, round=number, values={"loss": 0.5}))
    lines.emit(TrainEnded(run=order.run, reason="all rounds are trained", ok=True))


def read_notes(path: Path) -> dict[int, str]:
    """Round -> allowed or refused."""
    lines = path.read_text().splitlines() if path.exists() else []
    return {int(line.split()[0]): line.split()[1] for line in lines}
