"""How one deployment runs: one table of (state, event) -> (state, actions), and one pure function that applies it.

    machine, actions = step(machine, Happened(Event.FETCHED), now)
    # persist `machine`, then carry out `actions`; what comes of them are the next events

Rules:
- The caller persists the machine before it acts on an answer, so that after a power cut BOOTED continues from the intention.
- Which slot serves follows from the machine alone (`serving_slot`): the new one in PROBATION, the committed one otherwise. So
  there is no moment at which neither or both is meant to serve.
- Success exists only after probation. Everything that goes wrong before it leads through ROLLING_BACK to ROLLED_BACK, unless the
  order was refused before anything was staged.
- A machine that boots again and again without progress is in a loop: BOOTED becomes BOOTED_AGAIN and the deployment is undone. So is
  one whose actions fail again and again: STUMBLED becomes STUMBLED_AGAIN.
- A failure that is the artifact's fault puts its digest in quarantine; being superseded does not.
- A proven model may still turn bad. As long as the slot that was proven before it has not been ordered to be filled again, LATE_EVIDENCE
  takes the device back to it, through the same two states, and the verdict of that deployment is told anew.
- A pair that the table does not list is a bug of the caller: `step` raises UnlistedPairError and the caller reports it.
"""

from collections.abc import Collection
from dataclasses import dataclass, replace
from enum import Enum

from covey_agent.core.slots import free_slot
from covey_contract.limits import MAX_REASON_CHARS
from covey_contract.messages import DeploymentState as State
from covey_contract.messages import Quarantined

MAX_BOOTS = 3  # starts of the agent within one deployment without progress; the next one rolls back
MAX_STUMBLES = 4  # failures of an action in one state, restarts included; the next one rolls back
MAX_DEPLOY_CRASHES = 3  # deaths of the deploy child by signal or without an answer
PROGRESS_SERVED_S = 60.0  # this much more probation survived counts as progress


class Event(Enum):
    """What can happen to a deployment."""

    ORDERED = "ordered"  # a new deployment is to be carried out
    ALREADY_RUNS = "already_runs"  # a new deployment asks for what is committed
    ORDER_REFUSED = "order_refused"  # a new deployment must not be attempted
    VARIANT_CHOSEN = "variant_chosen"
    PROGRESSED = "progressed"  # chunks arrived
    FETCHED = "fetched"  # the free slot is complete
    DEPLOY_REFUSED = "deploy_refused"  # the deploy child refuses for good
    DEPLOY_FAILED = "deploy_failed"  # not possible now
    DEPLOY_DIED = "deploy_died"  # the deploy child ended without an answer
    DEPLOY_DIED_AGAIN = "deploy_died_again"  # once too often (made by `step` from DEPLOY_DIED)
    RETRY_DUE = "retry_due"
    CHECK_PASSED = "check_passed"
    CHECK_FAILED = "check_failed"  # wrong golden outputs, or the runtime died of the artifact
    ACTIVATION_BEGUN = "activation_begun"
    NEW_WORKER_READY = "new_worker_ready"
    NEW_WORKER_FAILED = "new_worker_failed"
    SERVED = "served"  # probation went on for a while without evidence
    EVIDENCE = "evidence"  # the new model is bad
    CONTROL_LOST = "control_lost"  # the connection to the server, which worked before, has been gone for too long in probation
    CONTROL_BACK = "control_back"  # after that: it is there again, and the reason says whether the new model was to blame
    LATE_EVIDENCE = "late_evidence"  # the proven model turned bad, and the one before it is still there
    PROBATION_PASSED = "probation_passed"
    OLD_SERVES = "old_serves"  # the committed slot accepts requests again, or there is none
    OLD_FAILED = "old_failed"  # the committed slot does not start either
    SUPERSEDED = "superseded"  # a newer desired state wants something else
    BOOTED = "booted"  # the agent started
    BOOTED_AGAIN = "booted_again"  # once too often (made by `step` from BOOTED)
    STEADY = "steady"  # the agent has been up for a while since its start
    STUMBLED = "stumbled"  # an action of this state failed: the state is begun again, after a while
    STUMBLED_AGAIN = "stumbled_again"  # once too often (made by `step` from STUMBLED)


class Action(Enum):
    """What the caller does after it has persisted the machine."""

    START_DEPLOY = "start_deploy"  # the deploy child
    START_CHECK = "start_check"  # the check child
    STOP_CHILDREN = "stop_children"  # deploy and check child of this deployment
    RETRY_LATER = "retry_later"  # RETRY_DUE after a back-off
    BEGIN_ACTIVATION = "begin_activation"  # ACTIVATION_BEGUN as soon as nothing speaks against it
    START_NEW_WORKER = "start_new_worker"  # on the new slot, not accepting
    SWITCH = "switch"  # old worker pauses but stays warm, new one accepts
    WATCH = "watch"  # probation runs
    RESTORE_OLD = "restore_old"  # stop the new worker, let the old one accept; OLD_SERVES or OLD_FAILED follows
    COMMIT = "commit"  # drain the old worker
    SERVE = "serve"  # start the worker of the serving slot
    REPORT = "report"  # tell the server
    REPORT_PROGRESS = "report_progress"  # tell the server, now and then


@dataclass(frozen=True, slots=True)
class Deployment:
    """One attempt to run one release. Times are milliseconds since 1970 UTC."""

    id: str
    generation: int  # of the desired state that ordered it
    model: str = ""
    version: int = 0
    manifest: str = ""
    probation_s: float = 600.0
    slot: str = ""  # the slot that it fills
    variant: str = ""
    variant_reason: str = ""
    artifact: str = ""
    reason: str = ""
    started_at: int = 0
    changed_at: int = 0
    chunks_done: int = 0
    chunks_total: int = 0
    bytes_received: int = 0
    fetched: str = ""  # how the artifact came: whole, as a delta, copied
    boots: int = 0  # since the last progress
    crashes: int = 0  # of the deploy child
    stumbles: int = 0  # in this state
    served_s: float = 0.0  # of probation
    connected_before: bool = False  # the control channel was there when the new model began to serve
    rollback_ms: float | None = None


@dataclass(frozen=True, slots=True)
class Machine:
    """Where this device is: what is proven, and what is being tried."""

    state: State = State.IDLE
    committed: str = ""  # the slot whose model is proven; "" before the first one
    deployment: Deployment | None = None
    quarantine: tuple[Quarantined, ...] = ()  # here, and not beside it, so that guilt and roll-back are persisted in one write
    previous: str = ""  # the slot that was proven before; "" if there is none or it is being filled again
    proven: Deployment | None = None  # the deployment that made `committed` the proven slot


@dataclass(frozen=True, slots=True)
class Happened:
    """An event with what it brings."""

    event: Event
    reason: str = ""
    deployment: Deployment | None = None  # ORDERED, ALREADY_RUNS, ORDER_REFUSED
    variant: str = ""
    artifact: str = ""
    chunks_done: int = 0
    chunks_total: int = 0
    bytes_received: int = 0
    fetched: str = ""
    served_s: float = 0.0
    rollback_ms: float | None = None
    connected: bool = False  # NEW_WORKER_READY: whether the control channel is there


class UnlistedPairError(Exception):
    """An event that cannot happen in this state: a bug, to be reported and survived."""

    def __init__(self, state: State, event: Event) -> None:
        super().__init__(f"event {event.value} is not listed for state {state.value}")
        self.state = state
        self.event = event


IN_FLIGHT = frozenset({State.FETCHING, State.VERIFYING, State.STAGED, State.ACTIVATING, State.PROBATION, State.ROLLING_BACK})
RESTING = frozenset(State) - IN_FLIGHT
BLAMING = frozenset(
    {
        Event.DEPLOY_DIED_AGAIN,
        Event.CHECK_FAILED,
        Event.NEW_WORKER_FAILED,
        Event.EVIDENCE,
        Event.LATE_EVIDENCE,
        Event.BOOTED_AGAIN,
    }
)
_LOOPS = frozenset({Event.BOOTED_AGAIN, Event.STUMBLED, Event.STUMBLED_AGAIN})

Row = tuple[State, tuple[Action, ...]]
S, E, A = State, Event, Action
_UNDO = (A.STOP_CHILDREN, A.RESTORE_OLD, A.REPORT)
_BEGIN: dict[Event, Row] = {
    E.ORDERED: (S.FETCHING, (A.START_DEPLOY, A.REPORT)),
    E.ALREADY_RUNS: (S.COMMITTED, (A.REPORT,)),
    E.ORDER_REFUSED: (S.REFUSED, (A.REPORT,)),
}

_REST: dict[State, dict[Event, Row]] = {
    state: {E.BOOTED: (state, (A.SERVE, A.REPORT)), E.STUMBLED: (state, (A.SERVE, A.REPORT))}
    for state in (S.IDLE, S.COMMITTED, S.ROLLED_BACK, S.REFUSED)
}

_ROWS: dict[State, dict[Event, Row]] = {
    S.IDLE: {**_BEGIN, **_REST[S.IDLE]},
    S.COMMITTED: {**_BEGIN, **_REST[S.COMMITTED], E.LATE_EVIDENCE: (S.ROLLING_BACK, _UNDO)},
    S.ROLLED_BACK: {
        **_BEGIN,
        **_REST[S.ROLLED_BACK],
        E.LATE_EVIDENCE: (S.ROLLING_BACK, _UNDO),
        E.CONTROL_BACK: (S.ROLLED_BACK, (A.REPORT,)),
    },
    S.REFUSED: {**_BEGIN, **_REST[S.REFUSED], E.LATE_EVIDENCE: (S.ROLLING_BACK, _UNDO)},
    S.FETCHING: {
        E.VARIANT_CHOSEN: (S.FETCHING, (A.REPORT,)),
        E.PROGRESSED: (S.FETCHING, (A.REPORT_PROGRESS,)),
        E.FETCHED: (S.VERIFYING, (A.START_CHECK, A.REPORT)),
        E.DEPLOY_REFUSED: (S.REFUSED, (A.REPORT,)),
        E.DEPLOY_FAILED: (S.FETCHING, (A.RETRY_LATER, A.REPORT)),
        E.DEPLOY_DIED: (S.FETCHING, (A.RETRY_LATER, A.REPORT)),
        E.DEPLOY_DIED_AGAIN: (S.ROLLING_BACK, _UNDO),
        E.RETRY_DUE: (S.FETCHING, (A.START_DEPLOY,)),
        E.STEADY: (S.FETCHING, ()),
        E.SUPERSEDED: (S.ROLLING_BACK, _UNDO),
        E.BOOTED: (S.FETCHING, (A.SERVE, A.START_DEPLOY, A.REPORT)),
        E.STUMBLED: (S.FETCHING, (A.SERVE, A.START_DEPLOY, A.REPORT)),
        E.BOOTED_AGAIN: (S.ROLLING_BACK, _UNDO),
        E.STUMBLED_AGAIN: (S.ROLLING_BACK, _UNDO),
    },
    S.VERIFYING: {
        E.CHECK_PASSED: (S.STAGED, (A.BEGIN_ACTIVATION, A.REPORT)),
        E.CHECK_FAILED: (S.ROLLING_BACK, _UNDO),
        E.SUPERSEDED: (S.ROLLING_BACK, _UNDO),
        E.BOOTED: (S.VERIFYING, (A.SERVE, A.START_CHECK, A.REPORT)),
        E.STUMBLED: (S.VERIFYING, (A.SERVE, A.START_CHECK, A.REPORT)),
        E.BOOTED_AGAIN: (S.ROLLING_BACK, _UNDO),
        E.STUMBLED_AGAIN: (S.ROLLING_BACK, _UNDO),
    },
    S.STAGED: {
        E.ACTIVATION_BEGUN: (S.ACTIVATING, (A.START_NEW_WORKER, A.REPORT)),
        E.SUPERSEDED: (S.ROLLING_BACK, _UNDO),
        E.BOOTED: (S.STAGED, (A.SERVE, A.BEGIN_ACTIVATION, A.REPORT)),
        E.STUMBLED: (S.STAGED, (A.SERVE, A.BEGIN_ACTIVATION, A.REPORT)),
        E.BOOTED_AGAIN: (S.ROLLING_BACK, _UNDO),
        E.STUMBLED_AGAIN: (S.ROLLING_BACK, _UNDO),
    },
    S.ACTIVATING: {
        E.NEW_WORKER_READY: (S.PROBATION, (A.SWITCH, A.WATCH, A.REPORT)),
        E.NEW_WORKER_FAILED: (S.ROLLING_BACK, _UNDO),
        E.SUPERSEDED: (S.ROLLING_BACK, _UNDO),
        E.BOOTED: (S.ACTIVATING, (A.SERVE, A.START_NEW_WORKER, A.REPORT)),
        E.STUMBLED: (S.ACTIVATING, (A.SERVE, A.START_NEW_WORKER, A.REPORT)),
        E.BOOTED_AGAIN: (S.ROLLING_BACK, _UNDO),
        E.STUMBLED_AGAIN: (S.ROLLING_BACK, _UNDO),
    },
    S.PROBATION: {
        E.SERVED: (S.PROBATION, ()),
        E.EVIDENCE: (S.ROLLING_BACK, _UNDO),
        E.CONTROL_LOST: (S.ROLLING_BACK, _UNDO),
        E.PROBATION_PASSED: (S.COMMITTED, (A.COMMIT, A.REPORT)),
        E.SUPERSEDED: (S.ROLLING_BACK, _UNDO),
        E.BOOTED: (S.PROBATION, (A.SERVE, A.WATCH, A.REPORT)),
        E.STUMBLED: (S.PROBATION, (A.SERVE, A.WATCH, A.REPORT)),
        E.BOOTED_AGAIN: (S.ROLLING_BACK, _UNDO),
        E.STUMBLED_AGAIN: (S.ROLLING_BACK, _UNDO),
    },
    S.ROLLING_BACK: {
        E.OLD_SERVES: (S.ROLLED_BACK, (A.REPORT,)),
        # The old model does not start either: that is an alarm, and its worker is tried again for ever, but the deployment is over.
        E.OLD_FAILED: (S.ROLLED_BACK, (A.SERVE, A.REPORT)),
        E.BOOTED: (S.ROLLING_BACK, (A.RESTORE_OLD, A.REPORT)),
        E.STUMBLED: (S.ROLLING_BACK, (A.RESTORE_OLD, A.REPORT)),
        E.BOOTED_AGAIN: (S.ROLLED_BACK, (A.SERVE, A.REPORT)),
        E.STUMBLED_AGAIN: (S.ROLLED_BACK, (A.SERVE, A.REPORT)),
    },
}
TABLE: dict[tuple[State, Event], Row] = {(state, event): row for state, rows in _ROWS.items() for event, row in rows.items()}


def step(machine: Machine, happened: Happened, now: int) -> tuple[Machine, tuple[Action, ...]]:
    """Apply one event at `now` (ms). Raises UnlistedPairError for a pair that the table does not list."""
    counted = _count(machine, happened.event)
    event = _refine(counted, happened.event)
    row = TABLE.get((machine.state, event))
    if row is None:
        raise UnlistedPairError(machine.state, event)
    target, actions = row
    deployment = _absorb(counted, event, happened)
    if deployment is not None and (target is not machine.state or event in _BEGIN):
        deployment = replace(deployment, changed_at=now, started_at=deployment.started_at or now, stumbles=0)
    committed, previous, proven = machine.committed, machine.previous, machine.proven
    if event is Event.PROBATION_PASSED and deployment is not None:
        committed, previous, proven = deployment.slot, machine.committed, deployment
    elif event is Event.ORDERED:
        previous = ""  # its slot is filled from now on
    elif event is Event.LATE_EVIDENCE:
        committed, previous, proven = machine.previous, "", None
    quarantine = machine.quarantine
    if event in BLAMING and target is State.ROLLING_BACK and deployment is not None and not _is_innocent(machine.state, event):
        quarantine = _blame(quarantine, deployment, now)
    after = Machine(state=target, committed=committed, deployment=deployment, quarantine=quarantine, previous=previous, proven=proven)
    return after, actions


def lift_quarantine(machine: Machine, digests: Collection[str]) -> Machine:
    """`machine` without these digests in quarantine. The caller has had the order for it verified."""
    return replace(machine, quarantine=tuple(entry for entry in machine.quarantine if entry.digest not in digests))


def can_revert(machine: Machine) -> bool:
    """Whether there is a way back from the proven model to the one that was proven before it."""
    return bool(machine.previous) and machine.proven is not None and machine.state in RESTING


def serving_slot(machine: Machine) -> str:
    """The one slot that is meant to serve now; "" while there is no proven model and none in probation."""
    if machine.state is State.PROBATION and machine.deployment is not None:
        return machine.deployment.slot
    return machine.committed


def _count(machine: Machine, event: Event) -> Machine:
    """Count re-entries before anything else, so that even a step that cannot be taken is counted."""
    deployment = machine.deployment
    if deployment is None or machine.state not in IN_FLIGHT:
        return machine
    if event is Event.BOOTED:
        return replace(machine, deployment=replace(deployment, boots=deployment.boots + 1))
    if event is Event.DEPLOY_DIED:
        return replace(machine, deployment=replace(deployment, crashes=deployment.crashes + 1))
    if event is Event.STUMBLED:
        return replace(machine, deployment=replace(deployment, stumbles=deployment.stumbles + 1))
    return machine


def _refine(machine: Machine, event: Event) -> Event:
    deployment = machine.deployment
    if deployment is None or machine.state not in IN_FLIGHT:
        return event
    if event is Event.BOOTED and deployment.boots > MAX_BOOTS:
        return Event.BOOTED_AGAIN
    if event is Event.DEPLOY_DIED and deployment.crashes >= MAX_DEPLOY_CRASHES:
        return Event.DEPLOY_DIED_AGAIN
    if event is Event.STUMBLED and deployment.stumbles > MAX_STUMBLES:
        return Event.STUMBLED_AGAIN
    return event


def _absorb(machine: Machine, event: Event, happened: Happened) -> Deployment | None:
    """The deployment with what the event brought."""
    if event in _BEGIN:
        return _begin(machine, event, happened)
    if event is Event.LATE_EVIDENCE:
        return _reopen(machine, happened)
    deployment = machine.deployment
    if deployment is None:
        return None
    if event in _LOOPS:
        return _go_round(machine.state, deployment, event, happened)
    change = _CHANGES.get(event)
    if change is not None:
        return change(deployment, happened)
    return replace(deployment, reason=_cut(happened.reason)) if happened.reason else deployment


def _begin(machine: Machine, event: Event, happened: Happened) -> Deployment:
    order = happened.deployment
    if order is None:
        raise ValueError(f"event {event.value} must bring a deployment")
    slot = {Event.ORDERED: free_slot(machine.committed), Event.ALREADY_RUNS: machine.committed}.get(event, "")
    return replace(order, slot=slot, reason=_cut(happened.reason))


def _go_round(state: State, deployment: Deployment, event: Event, happened: Happened) -> Deployment:
    """In a roll-back the reason stays: why it is rolled back is worth more than what fails now, which is in the log."""
    if state is State.ROLLING_BACK or event is Event.STUMBLED:
        return deployment
    if event is Event.STUMBLED_AGAIN:
        return replace(deployment, reason=_cut(f"failed {deployment.stumbles} times while {state.value}: {happened.reason}"))
    loop = f"the device started {deployment.boots} times without progress while the deployment was {state.value}"
    return replace(deployment, boots=0, reason=loop)


def _reopen(machine: Machine, happened: Happened) -> Deployment:
    """The deployment whose success is taken back; whatever was refused since is no longer the latest news."""
    if machine.proven is None or not machine.previous:
        raise UnlistedPairError(machine.state, Event.LATE_EVIDENCE)  # no slot to go back to: `can_revert` is asked first
    return replace(machine.proven, reason=_cut(happened.reason), boots=0, rollback_ms=None)


def _choose_variant(deployment: Deployment, happened: Happened) -> Deployment:
    return replace(deployment, variant=happened.variant, artifact=happened.artifact, variant_reason=_cut(happened.reason), reason="")


def _advance(deployment: Deployment, happened: Happened) -> Deployment:
    return replace(
        deployment,
        chunks_done=happened.chunks_done,
        chunks_total=happened.chunks_total,
        bytes_received=happened.bytes_received,
        boots=0 if happened.chunks_done > deployment.chunks_done else deployment.boots,
    )


def _complete(deployment: Deployment, happened: Happened) -> Deployment:
    artifact, variant = happened.artifact or deployment.artifact, happened.variant or deployment.variant
    return replace(deployment, boots=0, reason="", artifact=artifact, variant=variant, fetched=happened.fetched)


def _survive(deployment: Deployment, happened: Happened) -> Deployment:
    boots = 0 if happened.served_s - deployment.served_s >= PROGRESS_SERVED_S else deployment.boots
    return replace(deployment, served_s=happened.served_s, boots=boots)


def _be_steady(deployment: Deployment, _happened: Happened) -> Deployment:
    return replace(deployment, boots=0)


def _begin_probation(deployment: Deployment, happened: Happened) -> Deployment:
    return replace(deployment, connected_before=happened.connected)


def _return_to_old(deployment: Deployment, happened: Happened) -> Deployment:
    return replace(deployment, rollback_ms=happened.rollback_ms)


def _fail_twice(deployment: Deployment, happened: Happened) -> Deployment:
    return replace(deployment, reason=_cut(f"{deployment.reason}; then the old model did not start: {happened.reason}"))


_CHANGES = {
    Event.VARIANT_CHOSEN: _choose_variant,
    Event.PROGRESSED: _advance,
    Event.FETCHED: _complete,
    Event.NEW_WORKER_READY: _begin_probation,
    Event.SERVED: _survive,
    Event.STEADY: _be_steady,
    Event.OLD_SERVES: _return_to_old,
    Event.OLD_FAILED: _fail_twice,
}


def _is_innocent(state: State, event: Event) -> bool:
    """Nothing of the artifact has run while it was being fetched: a device that loses power again and again then has another trouble."""
    return event is Event.BOOTED_AGAIN and state is State.FETCHING


def _blame(quarantine: tuple[Quarantined, ...], deployment: Deployment, now: int) -> tuple[Quarantined, ...]:
    """The artifact is to blame, or the whole release while no variant was chosen yet."""
    digest = deployment.artifact or deployment.manifest
    if not digest or any(entry.digest == digest for entry in quarantine):
        return quarantine
    return (*quarantine, Quarantined(digest=digest, reason=deployment.reason, at=now))


def _cut(reason: str) -> str:
    return reason[:MAX_REASON_CHARS]
