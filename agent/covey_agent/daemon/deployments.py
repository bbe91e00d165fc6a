"""Deployments: feeds the machine with what happened, persists it, carries out its actions.

The order is always: pure step, fsync, act. What an action brings comes back as a later event.
"""

import logging
from collections.abc import Callable, Collection, Mapping
from typing import Protocol

import msgspec

from covey_agent.adapters.slot_files import Proven, SlotFiles
from covey_agent.core.backoff import ACTION_RETRY, DEPLOY_RETRY
from covey_agent.core.jobs import InferWindow
from covey_agent.core.machine import (
    IN_FLIGHT,
    RESTING,
    Action,
    Deployment,
    Event,
    Happened,
    Machine,
    UnlistedPairError,
    can_revert,
    lift_quarantine,
    serving_slot,
    step,
)
from covey_agent.daemon.aftercare import Aftercare
from covey_agent.daemon.kit import Kit
from covey_agent.daemon.serving import Serving
from covey_agent.daemon.staging import Staging
from covey_agent.daemon.watch import Watch
from covey_agent.errors import StoreError
from covey_contract.messages import DeploymentState

logger = logging.getLogger(__name__)
KEY_MACHINE = "machine"
KEY_ORDER = "running_order"
MAX_OLD_FAILURES = 2  # starts of the old model that fail before the roll-back counts as failed
KEY_UNTOLD = "untold"  # the end of a deployment that the history does not hold yet
PERSIST_RETRY_S = 30.0
STEADY_S = 600.0  # a start that lasts so long is no part of a loop
CONTROL_BACK_S = 60.0  # a connection that comes back so soon after the old model was what the new one had broken
ROLLED_BACK_DRAIN_S = 5.0  # what a guilty worker is given to answer the requests that it has accepted
RESULTS = frozenset({DeploymentState.COMMITTED, DeploymentState.ROLLED_BACK, DeploymentState.REFUSED})
_MESSAGES = frozenset({Action.REPORT, Action.REPORT_PROGRESS})  # one that cannot be sent is made up for by the next one
_QUIET = frozenset({Event.PROGRESSED, Event.SERVED, Event.STEADY})  # happen often and lose nothing in a power cut: written without fsync


class Audience(Protocol):
    """Who hears of deployments; wired by `app.py`."""

    def state_changed(self) -> None:
        """The full state is to be reported."""
        ...

    def progress_made(self) -> None:
        """A download went on."""
        ...

    def deployment_changed(self, deployment: Deployment, state: DeploymentState) -> None:
        """A deployment entered a state. Its end must be told exactly once: `KEY_UNTOLD` goes in the same write that keeps it."""
        ...

    def deployment_ended(self) -> None:
        """There is room for the next one."""
        ...

    def alarm_raised(self, what: str, detail: str) -> None:
        """Something needs a look."""
        ...


class Deployments:
    """The one deployment of this device, and which slot serves."""

    def __init__(self, kit: Kit, slots: SlotFiles, *, serving: Serving, staging: Staging, watch: Watch, aftercare: Aftercare) -> None:
        self._kit = kit
        self._slots = slots
        self._serving = serving
        self._staging = staging
        self._watch = watch
        self._aftercare = aftercare
        self._audience: Audience | None = None
        self._evidence_at: float | None = None
        self._control_lost = ""  # the deployment that was undone for it, until the connection is back
        self._old_served_at = 0.0
        self._old_failures = 0
        self._stumbles = 0  # in a row
        self._storage_failed_at: float | None = None
        self._actions: dict[Action, Callable[[Machine], None]] = {
            Action.START_DEPLOY: self._start_deploy,
            Action.START_CHECK: lambda machine: self._staging.start_check(_running(machine)),
            Action.STOP_CHILDREN: lambda _: self._staging.stop(),
            Action.RETRY_LATER: self._retry_later,
            Action.BEGIN_ACTIVATION: lambda _: self._later(Happened(Event.ACTIVATION_BEGUN)),
            Action.START_NEW_WORKER: lambda machine: self._serving.start(_running(machine).slot, paused=True),
            Action.SWITCH: lambda machine: self._serving.let_accept(_running(machine).slot),
            Action.WATCH: self._begin_watch,
            Action.RESTORE_OLD: self._restore_old,
            Action.COMMIT: self._commit,
            Action.SERVE: self._serve,
            Action.REPORT: lambda _: self._tell().state_changed(),
            Action.REPORT_PROGRESS: lambda _: self._tell().progress_made(),
        }
        self.machine = self._load()

    def listen(self, audience: Audience) -> None:
        """Tell this one."""
        self._audience = audience

    def boot(self) -> None:
        """The agent has started: go on from what was persisted. Needs no network."""
        self.happened(Happened(Event.BOOTED))
        self._save_proven()
        self._tell_untold()
        if self.machine.state is DeploymentState.FETCHING:
            self._kit.timers.set("steady", STEADY_S, self._be_steady)

    def happened(self, happened: Happened, *, also: Mapping[str, bytes | None] | None = None) -> None:
        """One event: pure step, persist together with `also`, act."""
        before = self.machine
        try:
            after, actions = step(before, happened, self._kit.clock.now_ms())
        except UnlistedPairError as exc:
            logger.exception("a bug: the deployment machine was given an event that cannot happen now")
            self._tell().alarm_raised("bug", str(exc))
            return
        ends = _entered(before, after) in RESULTS
        untold = {KEY_UNTOLD: _sign(after)} if ends else {}
        try:
            self._persist(after, {**(also or {}), **untold}, durable=happened.event not in _QUIET)
        except StoreError as exc:
            self._storage_failed(happened.event, exc)
            if not _may_act_unwritten(happened.event, after.state):
                self._kit.timers.set("persist-retry", PERSIST_RETRY_S, lambda: self._persist_again(before, happened, also))
                return
            self._kit.timers.set_once("persist-late", PERSIST_RETRY_S, self._persist_late)
        self.machine = after
        if _entered(before, after) is not None:
            self._stumbles = 0
        self._announce(before, after, happened)
        for action in actions:
            self._act(action, after)
        if after.state in RESTING and before.state in IN_FLIGHT:
            self._kit.soon(self._tell().deployment_ended)

    def connected(self) -> None:
        """The broker is back: a deployment that waits to be tried again need not wait any longer."""
        self._watch.connected()
        self._judge_lost_control()
        if self._kit.timers.is_set("deploy-retry"):
            self._kit.timers.set("deploy-retry", self._kit.random(), self._retry)

    def disconnected(self) -> None:
        """The broker is gone."""
        self._watch.disconnected()

    def lift_quarantine(self, digests: Collection[str]) -> None:
        """Give these digests another chance; the order for it has been verified."""
        machine = lift_quarantine(self.machine, digests)
        self._persist(machine, {}, durable=True)
        self.machine = machine
        self._save_proven()
        self._tell().state_changed()

    def worker_ready(self, slot: str) -> None:
        """A worker has loaded its model."""
        if self.machine.state is DeploymentState.ACTIVATING and self._is_new(slot):
            self.happened(Happened(Event.NEW_WORKER_READY, connected=self._watch.is_connected))

    def worker_accepts(self, slot: str) -> None:
        """A worker accepts requests."""
        if self.machine.state is DeploymentState.ROLLING_BACK and slot == self.machine.committed:
            self.happened(Happened(Event.OLD_SERVES, rollback_ms=self._since_evidence()))
        elif self.machine.state is DeploymentState.PROBATION and self._is_new(slot):
            self._watch.worker_accepts()
        self._tell().state_changed()

    def worker_window(self, slot: str, window: InferWindow) -> None:
        """What a worker saw; in probation it may be evidence."""
        if self.machine.state is DeploymentState.PROBATION and self._is_new(slot):
            self._watch.window_came(window)
        elif self.machine.state in RESTING and slot == self.machine.committed:
            self._aftercare.window_came(self.machine, window)

    def worker_ended(self, slot: str, reason: str) -> None:
        """A worker died: what that means depends on which one, and when."""
        self._tell().alarm_raised("worker_died", f"slot {slot}: {reason}")
        state = self.machine.state
        if state is DeploymentState.ACTIVATING and self._is_new(slot):
            self._note_evidence()
            self.happened(Happened(Event.NEW_WORKER_FAILED, reason=f"the new worker {reason} before it could serve"))
        elif state is DeploymentState.PROBATION and self._is_new(slot):
            self._watch.worker_died(reason)
            if self.machine.state is DeploymentState.PROBATION:
                self._serving.restart_later(slot)
        elif state is DeploymentState.ROLLING_BACK and slot == self.machine.committed:
            self._old_failures += 1
            if self._old_failures >= MAX_OLD_FAILURES:
                self.happened(Happened(Event.OLD_FAILED, reason=reason))
            else:
                self._serving.restart_later(slot)
        elif slot == serving_slot(self.machine) and not (state in RESTING and self._aftercare.worker_died(self.machine, reason)):
            self._serving.restart_later(slot)
        self._tell().state_changed()

    def evidence_found(self, reason: str) -> None:
        """The watch, or the check child, found the new model guilty."""
        self._note_evidence()
        event = Event.CHECK_FAILED if self.machine.state is DeploymentState.VERIFYING else Event.EVIDENCE
        self.happened(Happened(event, reason=reason))

    def late_evidence_found(self, reason: str) -> None:
        """The proven model turned bad, and the one before it is still there."""
        self._note_evidence()
        self.happened(Happened(Event.LATE_EVIDENCE, reason=reason))

    def _act(self, action: Action, machine: Machine) -> None:
        """One action. If it fails, the others are carried out all the same, and the state is begun again after a while."""
        try:
            self._actions[action](machine)
        except Exception as exc:  # whatever it was: a device must not stand still because of it, nor try it for ever without a pause
            logger.exception("%s failed while the deployment was %s", action.value, machine.state.value)
            if action in _MESSAGES:
                return
            self._stumbled(machine, f"{action.value}: {exc}")

    def _stumbled(self, machine: Machine, reason: str) -> None:
        self._stumbles += 1
        if self._stumbles == 1:
            self._tell().alarm_raised("action_failed", reason)
        delay = ACTION_RETRY.delay_s(self._stumbles, self._kit.random)
        self._kit.timers.set("stumbled", delay, lambda: self._begin_again(machine, reason))

    def _begin_again(self, failed: Machine, reason: str) -> None:
        if _stands_where(self.machine, failed):
            self.happened(Happened(Event.STUMBLED, reason=reason))

    def _be_steady(self) -> None:
        if self.machine.state is DeploymentState.FETCHING:
            self.happened(Happened(Event.STEADY))

    def _storage_failed(self, event: Event, error: StoreError) -> None:
        """Said once for each time that the disk fails, not once for each event that it fails."""
        if self._storage_failed_at is None:
            self._storage_failed_at = self._kit.clock.monotonic()
            logger.error(
                "the state cannot be written, from %s on: %s; this is tried again every %.0f s", event.value, error, PERSIST_RETRY_S
            )
            self._tell().alarm_raised("storage", str(error))

    def _persist_again(self, before: Machine, happened: Happened, also: Mapping[str, bytes | None] | None) -> None:
        if _stands_where(self.machine, before):
            self.happened(happened, also=also)

    def _persist_late(self) -> None:
        """What was done before it could be written."""
        try:
            self._kit.store.save({KEY_MACHINE: msgspec.json.encode(self.machine)})
        except StoreError:
            self._kit.timers.set("persist-late", PERSIST_RETRY_S, self._persist_late)
            return
        self._storage_is_back()
        self._save_proven()

    def _storage_is_back(self) -> None:
        if self._storage_failed_at is not None:
            seconds, self._storage_failed_at = self._kit.clock.monotonic() - self._storage_failed_at, None
            logger.warning("the state can be written again, after %.0f s", seconds)
            # Told again, because the first alarm may have found no room itself.
            self._tell().alarm_raised("storage_back", f"the state could not be written for {seconds:.0f} s")

    def _save_proven(self) -> None:
        """The second copy says what the machine says, also if the last process died between the two."""
        proven = Proven(committed=self.machine.committed, quarantine=list(self.machine.quarantine))
        if proven != self._slots.load_proven() and not self._slots.save_proven(proven):
            self._kit.timers.set("save-proven", PERSIST_RETRY_S, self._save_proven)

    def _tell_untold(self) -> None:
        """The end of a deployment that was persisted and, because this process's predecessor died, not yet told."""
        deployment = self.machine.deployment
        if deployment is not None and self._kit.store.load(KEY_UNTOLD) == _sign(self.machine):
            self._tell().deployment_changed(deployment, self.machine.state)

    def _start_deploy(self, machine: Machine) -> None:
        order = self._kit.store.load(KEY_ORDER)
        if order is None:
            self._later(Happened(Event.DEPLOY_REFUSED, reason="the order was lost together with the state database"))
            return
        self._staging.start_deploy(_running(machine), order=order, machine=machine)

    def _retry_later(self, _machine: Machine) -> None:
        failures = self._staging.failures
        delay = DEPLOY_RETRY.delay_s(max(1, failures), self._kit.random)
        self._kit.timers.set("deploy-retry", delay, self._retry)

    def _retry(self) -> None:
        if self.machine.state is DeploymentState.FETCHING:
            self.happened(Happened(Event.RETRY_DUE))

    def _restore_old(self, machine: Machine) -> None:
        self._watch.end()
        self._old_failures = 0
        self._kit.timers.cancel("deploy-retry")
        deployment = _running(machine)
        old = machine.committed
        if deployment.slot and deployment.slot != old:
            self._serving.retire(deployment.slot, within_s=ROLLED_BACK_DRAIN_S)
        if not old or self._slots.note(old) is None:
            self._later(Happened(Event.OLD_SERVES))
        elif self._serving.is_accepting(old):
            self._later(Happened(Event.OLD_SERVES, rollback_ms=self._since_evidence()))
        else:
            self._serving.let_accept(old)

    def _begin_watch(self, machine: Machine) -> None:
        self._watch.begin(_running(machine))
        if self._serving.is_accepting(_running(machine).slot):  # the state is begun again: the worker will not tell a second time
            self._watch.worker_accepts()

    def _commit(self, machine: Machine) -> None:
        self._watch.end()
        for slot in ("A", "B"):
            if slot != machine.committed:
                self._serving.retire(slot)

    def _serve(self, machine: Machine) -> None:
        slot = serving_slot(machine)
        if slot and self._slots.note(slot) is not None:
            self._serving.let_accept(slot)
        elif slot:
            self._tell().alarm_raised("slot_unreadable", f"slot {slot} should serve, but what it holds is not complete")
            if can_revert(machine) and self._slots.is_filled(machine.previous):
                self._kit.soon(lambda: self.late_evidence_found(f"what slot {slot} holds is no longer complete"))

    def _load(self) -> Machine:
        stored = self._kit.store.load(KEY_MACHINE)
        if stored is not None:
            try:
                return msgspec.json.decode(stored, type=Machine)
            except msgspec.DecodeError:
                logger.exception("the stored machine is unreadable; going on with what is proven")
        proven = self._slots.load_proven()
        state = DeploymentState.COMMITTED if proven.committed else DeploymentState.IDLE
        machine = Machine(state=state, committed=proven.committed, quarantine=tuple(proven.quarantine))
        if machine != Machine():
            self._remember(machine)
        return machine

    def _remember(self, machine: Machine) -> None:
        """Write what the second copy knew into the new database, where `covey-agent status` looks."""
        try:
            self._kit.store.save({KEY_MACHINE: msgspec.json.encode(machine)})
        except StoreError:
            logger.exception("what is proven could not be written into the new state database; it is still known")

    def _persist(self, machine: Machine, also: Mapping[str, bytes | None], *, durable: bool) -> None:
        if machine == self.machine and not also:
            return
        self._kit.store.save({**also, KEY_MACHINE: msgspec.json.encode(machine)}, durable=durable)
        self._storage_is_back()

    def _announce(self, before: Machine, after: Machine, happened: Happened) -> None:
        deployment = after.deployment
        if deployment is None:
            return
        if _entered(before, after) is not None:
            logger.info("deployment %s is %s%s", deployment.id, after.state.value, f": {deployment.reason}" if deployment.reason else "")
            self._tell().deployment_changed(deployment, after.state)
        if (after.quarantine, after.committed) != (before.quarantine, before.committed):
            self._save_proven()
        if happened.event is Event.ORDERED:
            self._evidence_at = None
        self._note_control(happened, deployment)

    def _note_control(self, happened: Happened, deployment: Deployment) -> None:
        if happened.event is Event.CONTROL_LOST:
            self._control_lost = deployment.id
        elif happened.event is Event.OLD_SERVES:
            self._old_served_at = self._kit.clock.monotonic()

    def _judge_lost_control(self) -> None:
        """The connection is there again after a model was sent back for its loss: say whose doing it was. Nothing else depends on that."""
        lost, self._control_lost = self._control_lost, ""
        undone = self.machine.deployment
        if undone is None or undone.id != lost or self.machine.state is not DeploymentState.ROLLED_BACK:
            return
        after_s = self._kit.clock.monotonic() - self._old_served_at
        verdict = "so the new model had broken it" if after_s <= CONTROL_BACK_S else "so the network was to blame"
        reason = f"{undone.reason}; it came back {after_s:.0f} s after the old model, {verdict}"
        self.happened(Happened(Event.CONTROL_BACK, reason=reason))

    def _note_evidence(self) -> None:
        self._evidence_at = self._kit.clock.monotonic()

    def _since_evidence(self) -> float | None:
        return None if self._evidence_at is None else round((self._kit.clock.monotonic() - self._evidence_at) * 1000, 1)

    def _is_new(self, slot: str) -> bool:
        return self.machine.deployment is not None and self.machine.deployment.slot == slot

    def _later(self, happened: Happened) -> None:
        deployment = _running(self.machine).id
        self._kit.soon(lambda: self._now(deployment, happened))

    def _now(self, deployment: str, happened: Happened) -> None:
        """An event that was decided on earlier; dropped if that deployment is over."""
        running = self.machine.deployment
        if running is not None and running.id == deployment and self.machine.state in IN_FLIGHT:
            self.happened(happened)

    def _tell(self) -> Audience:
        if self._audience is None:
            raise RuntimeError("nobody listens to the deployments")
        return self._audience


def _may_act_unwritten(event: Event, target: DeploymentState) -> bool:
    """With a full disk a device must still serve after a start, and a bad model must still go. What was not written is found out
    again after the next start: probation begins anew and sees the same evidence. Only steps forward wait for the disk."""
    back = (DeploymentState.ROLLING_BACK, DeploymentState.ROLLED_BACK, DeploymentState.REFUSED)
    return target in back or event is Event.BOOTED or event in _QUIET


def _entered(before: Machine, after: Machine) -> DeploymentState | None:
    """The state that a deployment has just come into, or None if nothing changed that is worth telling."""
    if after.deployment is None:
        return None
    is_same = before.deployment is not None and before.deployment.id == after.deployment.id
    return None if is_same and after.state is before.state else after.state


def _stands_where(now: Machine, then: Machine) -> bool:
    """Whether the same deployment is in the same state: what was put off then may be done now."""
    ids = [machine.deployment.id if machine.deployment else "" for machine in (now, then)]
    return now.state is then.state and ids[0] == ids[1]


def _sign(machine: Machine) -> bytes:
    """Which end of which deployment this is; a deployment that is reverted later ends a second time."""
    deployment = _running(machine)
    return f"{deployment.id} {machine.state.value} {deployment.changed_at}".encode()


def _running(machine: Machine) -> Deployment:
    if machine.deployment is None:
        raise RuntimeError(f"state {machine.state.value} without a deployment")
    return machine.deployment
