"""What the round loop writes down and reads back: ledger, rounds, contributions, checkpoints, live events.

One method, one transaction. The loop itself (`rounds.py`) knows no database.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlmodel import Session, col, select

from covey_contract.messages import PrivacyPlan
from covey_server.clock import Clock
from covey_server.db import Database
from covey_server.devices.models import Device, DeviceState
from covey_server.errors import ConflictError, NotFoundError
from covey_server.federation import service
from covey_server.federation.models import (
    Contribution,
    ContributionState,
    ParticipantState,
    Round,
    RunParticipant,
    RunState,
)
from covey_server.federation.rules import Member, describe_shortage
from covey_server.federation.weights import State, from_checkpoint, to_checkpoint
from covey_server.outbox import emit
from covey_server.parts import BlobStore
from covey_server.privacy import service as ledger


@dataclass(frozen=True, slots=True)
class RunTerms:
    """What does not change while one ServerApp drives a run."""

    run: str
    flower_run: str
    task: str
    task_digest: str
    dataset: str
    held_out: str
    plan: PrivacyPlan
    rounds_total: int
    rounds_done: int  # when this ServerApp began
    checkpoint: str
    min_contributors: int
    round_timeout_s: float


@dataclass(frozen=True, slots=True)
class Desk:
    """Database and store of one ServerApp."""

    db: Database
    blobs: BlobStore
    clock: Clock
    round_timeout_s: float

    def open_run(self, run_id: str, *, flower_run: str) -> RunTerms:
        """The terms of a run that this Flower run shall drive. Raises ConflictError if it is not this one's."""
        with self.db.read() as session:
            run = service.get_run(session, run_id)
            task = service.task_of(session, run)
            if run.state is not RunState.RUNNING:
                raise ConflictError(f"run {run_id} is {run.state}, not running")
            return RunTerms(
                run=run.id,
                flower_run=flower_run,
                task=task.name,
                task_digest=task.digest,
                dataset=task.dataset,
                held_out=run.held_out,
                plan=service.plan_of(run),
                rounds_total=run.rounds_total,
                rounds_done=run.rounds_done,
                checkpoint=run.checkpoint,
                min_contributors=run.min_participants,
                round_timeout_s=self.round_timeout_s,
            )

    def is_wanted(self, terms: RunTerms) -> bool:
        """Whether the run still runs, and by this Flower run (none: the one that starts it has not noted its id yet)."""
        with self.db.read() as session:
            run = service.get_run(session, terms.run)
            return run.state is RunState.RUNNING and run.flower_run_id in {"", terms.flower_run}

    def read_checkpoint(self, terms: RunTerms) -> State | None:
        """The newest state of the model, None before the first."""
        return from_checkpoint(self.blobs.read(terms.checkpoint)) if terms.checkpoint else None

    def read_members(self, terms: RunTerms) -> tuple[list[Member], set[str]]:
        """Accepted participants that are still in the fleet, and which of them have refused a round of this run."""
        with self.db.read() as session:
            query = (
                select(RunParticipant, Device)
                .join(Device, col(Device.id) == col(RunParticipant.device_id))
                .where(RunParticipant.run_id == terms.run, RunParticipant.state == ParticipantState.ACCEPTED)
            )
            rows = [(member, device) for member, device in session.exec(query) if device.state is DeviceState.ACTIVE]
            refusals = select(Contribution.device_id).where(
                Contribution.run_id == terms.run, Contribution.state == ContributionState.REFUSED
            )
            members = [Member(device=device.id, node=device.supernode_id) for _, device in rows]
            return members, set(session.exec(refusals)) & {member.device for member in members}

    def keep_first(self, terms: RunTerms, state: State, *, measured: tuple[float, float] | None) -> None:
        """Note the untrained model as round 0."""
        checkpoint = self.blobs.put(to_checkpoint(state))
        with self.db.begin() as session:
            now = self.clock()
            entry = Round(run_id=terms.run, number=0, started_at=now, finished_at=now, checkpoint=checkpoint)
            _set_quality(entry, measured)
            session.merge(entry)
            self._emit(session, terms, 0)

    def open_round(self, terms: RunTerms, number: int, devices: Sequence[str]) -> None:
        """Charge everybody who is about to be asked. Committed before anything is sent."""
        with self.db.begin() as session:
            now = self.clock()
            known = session.get(Round, (terms.run, number))
            entry = known or Round(run_id=terms.run, number=number, started_at=now)
            entry.sampled = len(devices)
            session.add(entry)
            for device in devices:
                ledger.append_charge(
                    session, device=device, dataset=terms.dataset, run=terms.run, round_number=number, plan=terms.plan, at=now
                )
                row = session.get(Contribution, (terms.run, number, device)) or Contribution(
                    run_id=terms.run, round=number, device_id=device
                )
                if row.state is not ContributionState.RECEIVED:  # asked again after a crash: what came before did come
                    row.state, row.reason, row.at = ContributionState.SENT, "", now
                session.add(row)
            self._emit(session, terms, number)

    def note_received(self, terms: RunTerms, number: int, device: str, *, seconds: float) -> None:
        """A usable contribution came."""
        with self.db.begin() as session:
            row = self._contribution(session, terms, number, device)
            row.state, row.seconds, row.at = ContributionState.RECEIVED, seconds, self.clock()
            self._emit(session, terms, number)

    def note_refused(self, terms: RunTerms, number: int, device: str, *, reason: str) -> None:
        """A participant said that nothing of this round ever left it: its charge is void."""
        with self.db.begin() as session:
            row = self._contribution(session, terms, number, device)
            charge = ledger.find_charge(session, device=device, run=terms.run, round_number=number)
            if charge is not None and row.state is ContributionState.SENT:
                ledger.append_void(session, charge, reason=reason[:500], at=self.clock())
            row.state, row.reason, row.at = ContributionState.REFUSED, reason[:500], self.clock()
            self._emit(session, terms, number)

    def note_missing(self, terms: RunTerms, number: int, devices: Sequence[str], *, reason: str) -> None:
        """Nothing usable came: the charges stand, because nobody can say that nothing left the participants."""
        with self.db.begin() as session:
            for device in devices:
                row = self._contribution(session, terms, number, device)
                row.state, row.reason, row.at = ContributionState.MISSING, reason[:500], self.clock()
            self._emit(session, terms, number)

    def close_round(self, terms: RunTerms, number: int, state: State, *, measured: tuple[float, float] | None) -> None:
        """The new weights are the model from now on."""
        checkpoint = self.blobs.put(to_checkpoint(state))
        with self.db.begin() as session:
            run, entry = service.get_run(session, terms.run), session.get(Round, (terms.run, number))
            if entry is None:
                raise NotFoundError("round", f"{number} of run {terms.run}")
            states = self._states(session, terms, number)
            entry.finished_at, entry.checkpoint = self.clock(), checkpoint
            entry.contributors = states.count(ContributionState.RECEIVED)
            _set_quality(entry, measured)
            run.rounds_done, run.checkpoint = number, checkpoint
            self._emit(session, terms, number)

    def describe_round(self, terms: RunTerms, number: int) -> str:
        """Why a round had too few contributions; also noted in the round."""
        with self.db.begin() as session:
            reason = describe_shortage(self._states(session, terms, number), number=number, needed=terms.min_contributors)
            entry = session.get(Round, (terms.run, number))
            if entry is not None:
                entry.reason, entry.finished_at = reason, self.clock()
            return reason

    def rounds_done(self, terms: RunTerms) -> int:
        """How many rounds have counted."""
        with self.db.read() as session:
            return service.get_run(session, terms.run).rounds_done

    def end_run(self, terms: RunTerms, state: RunState, *, reason: str) -> None:
        """The run is over."""
        with self.db.begin() as session:
            service.finish_run(session, terms.run, state, reason=reason, now=self.clock())

    def _contribution(self, session: Session, terms: RunTerms, number: int, device: str) -> Contribution:
        row = session.get(Contribution, (terms.run, number, device))
        if row is None:
            raise NotFoundError("contribution", f"of {device} in round {number} of run {terms.run}")
        return row

    def _states(self, session: Session, terms: RunTerms, number: int) -> list[ContributionState]:
        query = select(Contribution).where(Contribution.run_id == terms.run, Contribution.round == number)
        return [row.state for row in session.exec(query)]

    def _emit(self, session: Session, terms: RunTerms, number: int) -> None:
        session.flush()
        emit(session, "round.changed", {"run": terms.run, "round": number})


def _set_quality(entry: Round, measured: tuple[float, float] | None) -> None:
    if measured is not None:
        entry.accuracy, entry.loss = measured
