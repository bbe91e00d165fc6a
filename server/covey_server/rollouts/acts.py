"""Rollouts: what operators do with them.

    DRAFT --start--> RUNNING --all phases done--> COMPLETED
                     RUNNING <--pause/resume--> PAUSED
                     RUNNING, PAUSED --a gate fails--> HALTED
    DRAFT, RUNNING, PAUSED --cancel--> CANCELLED

What happens by itself is in `progress.py`.
"""

import secrets
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlmodel import Session, col, func, select

from covey_server import outbox
from covey_server.audit.service import record
from covey_server.errors import ConflictError, InvalidInputError, NotFoundError
from covey_server.parts import Director
from covey_server.releases.service import get_release, name_of, shippable_ref
from covey_server.rollouts.models import Rollout, RolloutDevice, RolloutDeviceState, RolloutState
from covey_server.rollouts.orders import new_deployment_id, send_phase, take_back
from covey_server.rollouts.phases import DEFAULT_PHASES, expand_selector, parse_phases
from covey_server.rollouts.rules import assign_phases

OPEN_STATES = (RolloutDeviceState.PENDING, RolloutDeviceState.SENT, RolloutDeviceState.ACTIVE)
LIVE_STATES = (RolloutState.RUNNING, RolloutState.PAUSED)
Counts = dict[int, dict[RolloutDeviceState, int]]  # phase -> state -> devices


def create_rollout(
    session: Session,
    release_id: int,
    *,
    selector: Mapping[str, Any],
    actor: str,
    now: datetime,
    phases: Sequence[Mapping[str, Any]] = DEFAULT_PHASES,
    name: str = "",
    probation_s: float = 600.0,
    deadline_s: float = 3600.0,
    revert_on_halt: bool = True,
) -> Rollout:
    """Draft a rollout: who gets the release in which phase is decided here and not changed later."""
    release = get_release(session, release_id)
    shippable_ref(release)
    parsed = parse_phases(phases)
    devices = [device.id for device in expand_selector(session, selector)]
    unknown = {device for phase in parsed for device in phase.devices} - set(devices)
    if unknown:
        raise InvalidInputError(f"device {min(unknown)} is named in a phase but not selected")
    rollout = Rollout(
        id=f"ro-{secrets.token_hex(6)}",
        release_id=release_id,
        name=name or name_of(release),
        selector=dict(selector),
        phases=[dict(phase) for phase in phases],
        probation_s=probation_s,
        deadline_s=deadline_s,
        revert_on_halt=revert_on_halt,
        created_by=actor,
        created_at=now,
    )
    session.add(rollout)
    session.flush()
    for device, phase in sorted(assign_phases(devices, parsed, salt=rollout.id).items(), key=lambda item: (item[1], item[0])):
        session.add(RolloutDevice(rollout_id=rollout.id, device_id=device, phase=phase, deployment_id=new_deployment_id()))
    record(session, "rollout.created", actor=actor, subject=rollout.id, detail={"release": name_of(release), "devices": len(devices)})
    tell(session, rollout)
    return rollout


def start_rollout(session: Session, rollout_id: str, *, director: Director, actor: str, now: datetime) -> Rollout:
    """Begin with the first phase. Raises ConflictError if a device still takes part in another rollout."""
    rollout = _in_state(session, rollout_id, RolloutState.DRAFT)
    shippable_ref(get_release(session, rollout.release_id))
    _check_no_other(session, rollout)
    rollout.state, rollout.started_at = RolloutState.RUNNING, now
    send_phase(session, rollout, director=director, now=now)
    record(session, "rollout.started", actor=actor, subject=rollout.id)
    tell(session, rollout)
    return rollout


def pause_rollout(session: Session, rollout_id: str, *, actor: str) -> Rollout:
    """Tell no further device; those that were told go on, and failures still halt."""
    rollout = _in_state(session, rollout_id, RolloutState.RUNNING)
    rollout.state = RolloutState.PAUSED
    record(session, "rollout.paused", actor=actor, subject=rollout.id)
    tell(session, rollout)
    return rollout


def resume_rollout(session: Session, rollout_id: str, *, actor: str) -> Rollout:
    """Go on after a pause. A halted rollout stays halted: make a new one."""
    rollout = _in_state(session, rollout_id, RolloutState.PAUSED)
    rollout.state = RolloutState.RUNNING
    record(session, "rollout.resumed", actor=actor, subject=rollout.id)
    tell(session, rollout)
    return rollout


def cancel_rollout(session: Session, rollout_id: str, *, director: Director, actor: str, now: datetime) -> Rollout:
    """End it: devices that were not told are skipped, those at work are told to keep what they had, those done keep the release."""
    rollout = _in_state(session, rollout_id, RolloutState.DRAFT, *LIVE_STATES)
    rollout.state, rollout.finished_at, rollout.reason = RolloutState.CANCELLED, now, f"cancelled by {actor}"
    skip_pending(session, rollout, reason="the rollout was cancelled before its turn", now=now)
    take_back(session, rollout, director=director, now=now, succeeded_too=False)
    record(session, "rollout.cancelled", actor=actor, subject=rollout.id)
    tell(session, rollout)
    return rollout


def get_rollout(session: Session, rollout_id: str) -> Rollout:
    """One rollout. Raises NotFoundError."""
    rollout = session.get(Rollout, rollout_id)
    if rollout is None:
        raise NotFoundError("rollout", rollout_id)
    return rollout


def list_rollouts(
    session: Session, *, state: RolloutState | None = None, before: tuple[datetime, str] | None = None, limit: int = 50
) -> list[Rollout]:
    """Rollouts, the newest first; `before` is the (created_at, id) behind which to go on."""
    query = select(Rollout).order_by(col(Rollout.created_at).desc(), col(Rollout.id).desc()).limit(limit)
    if state is not None:
        query = query.where(Rollout.state == state)
    if before is not None:
        moment, ident = before
        older = col(Rollout.created_at) < moment
        query = query.where(older | ((col(Rollout.created_at) == moment) & (col(Rollout.id) < ident)))
    return list(session.exec(query))


def list_rollout_devices(
    session: Session, rollout_id: str, *, state: RolloutDeviceState | None = None, after: int = 0, limit: int = 50
) -> list[RolloutDevice]:
    """A rollout's devices, by phase as they were assigned."""
    get_rollout(session, rollout_id)
    query = select(RolloutDevice).where(RolloutDevice.rollout_id == rollout_id, col(RolloutDevice.id) > after)
    if state is not None:
        query = query.where(RolloutDevice.state == state)
    return list(session.exec(query.order_by(col(RolloutDevice.id)).limit(limit)))


def count_devices(session: Session, rollout_ids: Sequence[str]) -> dict[str, Counts]:
    """How many devices of each rollout are where."""
    found: dict[str, Counts] = {rollout_id: {} for rollout_id in rollout_ids}
    query = (
        select(RolloutDevice.rollout_id, RolloutDevice.phase, RolloutDevice.state, func.count())
        .where(col(RolloutDevice.rollout_id).in_(rollout_ids))
        .group_by(RolloutDevice.rollout_id, col(RolloutDevice.phase), col(RolloutDevice.state))
    )
    for rollout_id, phase, state, count in session.exec(query):
        found[rollout_id].setdefault(phase, {})[RolloutDeviceState(state)] = count
    return found


def skip_pending(session: Session, rollout: Rollout, *, reason: str, now: datetime) -> None:
    """Leave out every device that was not told yet."""
    query = select(RolloutDevice).where(RolloutDevice.rollout_id == rollout.id, RolloutDevice.state == RolloutDeviceState.PENDING)
    for part in session.exec(query):
        part.state, part.reason, part.finished_at = RolloutDeviceState.SKIPPED, reason, now


def tell(session: Session, rollout: Rollout, *, device: str = "") -> None:
    """Show consoles a rollout as it is now."""
    data = {"id": rollout.id, "state": rollout.state.value, "phase": rollout.current_phase, "reason": rollout.reason}
    outbox.emit(session, "rollout.changed", data | ({"device": device} if device else {}))


def _in_state(session: Session, rollout_id: str, *states: RolloutState) -> Rollout:
    rollout = get_rollout(session, rollout_id)
    if rollout.state not in states:
        raise ConflictError(f"rollout {rollout_id} is {rollout.state.value}; expected {' or '.join(state.value for state in states)}")
    return rollout


def _check_no_other(session: Session, rollout: Rollout) -> None:
    mine = select(RolloutDevice.device_id).where(RolloutDevice.rollout_id == rollout.id)
    query = (
        select(RolloutDevice.device_id, RolloutDevice.rollout_id)
        .join(Rollout, col(Rollout.id) == RolloutDevice.rollout_id)
        .where(
            Rollout.id != rollout.id,
            col(Rollout.state).in_(LIVE_STATES),
            col(RolloutDevice.state).in_(OPEN_STATES),
            col(RolloutDevice.device_id).in_(mine),
        )
        .limit(1)
    )
    other = session.exec(query).first()
    if other is not None:
        raise ConflictError(f"device {other[0]} still takes part in rollout {other[1]}; wait for it, or cancel it")
