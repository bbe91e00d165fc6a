"""What the worker does about runs every second or so: keys, beginnings, ends, and ServerApps that died.

    RunKeeper(parts, SuperLinkControl.open(settings)).tick()

Rules:
- A device that is in the fleet and has a SuperNode key is admitted; a revoked one is expelled.
- A run begins when everybody answered or the deadline passed, if enough accepted.
- A Flower run does not survive the SuperLink. When it is over and ours is not, a new one continues from the newest checkpoint,
  a few times; after that the run has failed, with the reason.
- Calls to Flower are made outside of transactions, and what they did is noted after; doing it again does no harm.
- A SuperLink that does not answer is waited for: nothing is decided without it.
"""

import logging
from dataclasses import dataclass, field
from datetime import timedelta

from sqlmodel import col, select

from covey_server.devices.models import Device, DeviceState
from covey_server.errors import InvalidInputError, UnavailableError
from covey_server.federation import service
from covey_server.federation.control import FlowerControl, FlowerStatus
from covey_server.federation.models import Run, RunState
from covey_server.federation.rules import Verdict, judge_invitations
from covey_server.parts import Parts

logger = logging.getLogger(__name__)
_NEWS = timedelta(hours=1)
MAX_RESTARTS = 5  # of a ServerApp without a finished round in between


@dataclass
class RunKeeper:
    """Keeps runs going; one per worker process."""

    parts: Parts
    control: FlowerControl
    _restarts: dict[str, tuple[int, int]] = field(default_factory=dict)  # run -> (rounds done then, restarts since)
    _dismissed: set[str] = field(default_factory=set)
    _bad_keys: set[str] = field(default_factory=set)
    _away: bool = False

    def tick(self) -> None:
        """Look once. Never raises for a SuperLink that is away."""
        try:
            self._keep_keys()
            self._begin_runs()
            self._keep_runs()
            self._away = False
        except UnavailableError as exc:
            logger.log(logging.DEBUG if self._away else logging.WARNING, "runs wait for the SuperLink: %s", exc)
            self._away = True
        self._dismiss()

    def _keep_keys(self) -> None:
        with self.parts.db.read() as session:
            devices = list(session.exec(select(Device).where(Device.supernode_public_key != "")))
        for device in devices:
            if device.state is DeviceState.ACTIVE and not device.supernode_id and device.id not in self._bad_keys:
                self._admit(device)
            elif device.state is DeviceState.REVOKED and device.supernode_id:
                self.control.expel(device.supernode_id)
                self._note_node(device.id, "")
                logger.info("device %s may no longer join rounds", device.id)

    def _admit(self, device: Device) -> None:
        try:
            node = self.control.admit(device.supernode_public_key, name=device.id)
        except InvalidInputError as exc:
            self._bad_keys.add(device.id)
            logger.warning("device %s: %s", device.id, exc)
            return
        self._note_node(device.id, node)
        logger.info("device %s may join rounds as node %s", device.id, node)

    def _note_node(self, device_id: str, node: str) -> None:
        with self.parts.db.begin() as session:
            device = session.get(Device, device_id)
            if device is not None:
                device.supernode_id = node

    def _begin_runs(self) -> None:
        for run in self._runs(RunState.INVITING):
            now = self.parts.clock()
            with self.parts.db.begin() as session:
                states = [member.state for member in service.participants_of(session, run.id)]
                past = run.invite_deadline is not None and now >= run.invite_deadline
                verdict = judge_invitations(states, min_participants=run.min_participants, is_past_deadline=past)
                if verdict is Verdict.GIVE_UP:
                    accepted = sum(1 for state in states if state.value == "accepted")
                    reason = f"{accepted} participants accepted, {run.min_participants} are needed"
                    service.finish_run(session, run.id, RunState.FAILED, reason=reason, now=now)
                elif verdict is Verdict.GO:
                    current = service.get_run(session, run.id)
                    if current.state is RunState.INVITING:
                        current.state = RunState.RUNNING

    def _keep_runs(self) -> None:
        for run in self._runs(RunState.RUNNING):
            status = self.control.status(run.flower_run_id) if run.flower_run_id else None
            if status is not None and not status.is_over:
                continue
            if not run.flower_run_id:
                self._start(run)
            elif self._may_restart(run):
                logger.warning("run %s: its ServerApp is over (%s); continuing after round %d", run.id, _told(status), run.rounds_done)
                self._start(run)
            else:
                self._fail(run, f"its ServerApp ended {MAX_RESTARTS} times: {_told(status)}")

    def _start(self, run: Run) -> None:
        # A crash between these two steps leaves a ServerApp that nobody knows; it stops itself when another's id is noted.
        flower_run = self.control.start({"run": run.id, "work-dir": str(self.parts.settings.path())})
        with self.parts.db.begin() as session:
            service.get_run(session, run.id).flower_run_id = flower_run

    def _may_restart(self, run: Run) -> bool:
        done, count = self._restarts.get(run.id, (run.rounds_done, 0))
        count = count + 1 if done == run.rounds_done else 1
        self._restarts[run.id] = (run.rounds_done, count)
        return count <= MAX_RESTARTS

    def _fail(self, run: Run, reason: str) -> None:
        with self.parts.db.begin() as session:
            service.finish_run(session, run.id, RunState.FAILED, reason=reason, now=self.parts.clock())

    def _dismiss(self) -> None:
        """Tell the participants of ended runs to go home, once per worker; a StopRun that comes twice does no harm."""
        # A worker that starts today need not repeat last year's news.
        since = self.parts.clock() - _NEWS
        with self.parts.db.read() as session:
            query = select(Run).where(col(Run.finished_at) > since, col(Run.started_at).is_not(None))
            runs = [run for run in session.exec(query) if run.id not in self._dismissed]
        for run in runs:
            if run.state is RunState.STOPPED and run.flower_run_id:
                self._stop_flower(run.flower_run_id)
            with self.parts.db.begin() as session:
                service.dismiss_participants(session, run, director=self.parts.director, now=self.parts.clock())
            self._dismissed.add(run.id)

    def _stop_flower(self, flower_run: str) -> None:
        try:
            self.control.stop(flower_run)
        except UnavailableError as exc:
            logger.info("the SuperLink was not told to stop run %s: %s", flower_run, exc)

    def _runs(self, state: RunState) -> list[Run]:
        with self.parts.db.read() as session:
            return list(session.exec(select(Run).where(Run.state == state)))


def _told(status: FlowerStatus | None) -> str:
    return f"{status.outcome}: {status.detail}" if status else "Flower does not know it"
