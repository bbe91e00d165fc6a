"""How a rollout goes on by itself: by what devices report, and by the worker's tick when they report nothing."""

import logging
from collections.abc import Iterable
from datetime import datetime, timedelta

from sqlmodel import Session, and_, col, or_, select

from covey_contract.ids import DeviceId
from covey_contract.limits import MAX_REASON_CHARS
from covey_contract.messages import DeploymentReport, DeploymentState, Reported
from covey_server.audit.service import record
from covey_server.parts import Director, Parts
from covey_server.releases.models import ReleaseState
from covey_server.releases.service import get_release, name_of
from covey_server.rollouts.acts import LIVE_STATES, OPEN_STATES, count_devices, get_rollout, skip_pending, tell
from covey_server.rollouts.models import Rollout, RolloutDevice, RolloutDeviceState, RolloutState
from covey_server.rollouts.orders import send_phase, take_back
from covey_server.rollouts.phases import parse_phases
from covey_server.rollouts.rules import Decision, PhaseOutcome, is_overdue, judge_phase, next_state
from covey_server.triggers.models import Severity
from covey_server.triggers.service import raise_alert

logger = logging.getLogger(__name__)
_WORKING_STATES = (RolloutDeviceState.SENT, RolloutDeviceState.ACTIVE)
_DONE_STATES = frozenset(RolloutDeviceState) - set(OPEN_STATES)


def note_report(session: Session, device_id: DeviceId, reported: Reported, *, now: datetime) -> str | None:
    """Write what a device reports on its deployment into its part; returns the rollout that this belongs to, None if none."""
    report = reported.deployment
    if report is None:
        return None
    query = select(RolloutDevice).where(
        RolloutDevice.device_id == device_id,
        or_(col(RolloutDevice.deployment_id) == report.deployment, col(RolloutDevice.revert_deployment_id) == report.deployment),
    )
    part = session.exec(query).first()
    if part is None:
        return None
    is_way_back = part.deployment_id != report.deployment
    was = part.state
    if _note_way_back(part, report, now) if is_way_back else _note_deployment(session, part, report, now):
        rollout = get_rollout(session, part.rollout_id)
        if (was, part.state) == (RolloutDeviceState.SUCCEEDED, RolloutDeviceState.FAILED):
            _reopen(session, rollout, part, now=now)
        tell(session, rollout, device=device_id)
    return part.rollout_id


def advance_rollout(session: Session, rollout_id: str, *, director: Director, now: datetime) -> None:
    """Do what the gates say now: go on, wait, or halt."""
    rollout = get_rollout(session, rollout_id)
    while rollout.state in LIVE_STATES:
        reason = _why_halt(session, rollout)
        if reason:
            _halt(session, rollout, reason, director=director, now=now)
            return
        if rollout.state is RolloutState.PAUSED:
            return
        decision, _ = _judge(session, rollout, rollout.current_phase)
        if decision is Decision.HOLD:
            if send_phase(session, rollout, director=director, now=now):
                tell(session, rollout)
            return
        if rollout.current_phase + 1 >= len(rollout.phases):
            rollout.state, rollout.finished_at = RolloutState.COMPLETED, now
            record(session, "rollout.completed", actor="system", subject=rollout.id)
        else:
            rollout.current_phase += 1
        tell(session, rollout)
        session.flush()


def tick_rollouts(parts: Parts, now: datetime) -> None:
    """Give up on silent devices, open gates, send the rest of a phase or of a way back; one transaction a rollout."""
    with parts.db.read() as session:
        working = select(RolloutDevice.rollout_id).where(col(RolloutDevice.state).in_(_WORKING_STATES))
        query = select(Rollout.id).where(
            or_(col(Rollout.state).in_(LIVE_STATES), and_(col(Rollout.state) != RolloutState.COMPLETED, col(Rollout.id).in_(working)))
        )
        rollout_ids = list(session.exec(query))
    for rollout_id in rollout_ids:
        try:
            _tick_rollout(parts, rollout_id, now)
        except Exception:
            # The loop's top: a fault in one rollout must not keep the others from halting.
            logger.exception("rollout %s cannot go on; it is tried again", rollout_id)


def _tick_rollout(parts: Parts, rollout_id: str, now: datetime) -> None:
    with parts.db.begin() as session:
        rollout = get_rollout(session, rollout_id)
        _give_up_on_silent(session, rollout, now)
        advance_rollout(session, rollout_id, director=parts.director, now=now)
        if rollout.state is RolloutState.HALTED and rollout.revert_on_halt:
            take_back(session, rollout, director=parts.director, now=now, succeeded_too=True)
        elif rollout.state is RolloutState.CANCELLED:
            take_back(session, rollout, director=parts.director, now=now, succeeded_too=False)


def _note_deployment(session: Session, part: RolloutDevice, report: DeploymentReport, now: datetime) -> bool:
    before = (part.state, part.deployment_state, part.chunks_done, part.reason)
    state = next_state(part.state, report.state)
    if part.revert_deployment_id and state is RolloutDeviceState.FAILED and part.state in OPEN_STATES:
        state = RolloutDeviceState.SKIPPED  # it gave up because it was told to, not because the release is bad
    part.state = state
    part.deployment_state, part.reason, part.heard_at = report.state.value, report.reason, now
    part.variant, part.variant_reason = report.variant, report.variant_reason
    part.chunks_done, part.chunks_total, part.bytes_received = report.chunks_done, report.chunks_total, report.bytes_received
    part.rollback_ms = report.rollback_ms
    part.finished_at = (part.finished_at or now) if state in _DONE_STATES else None
    if before[1:3] != (part.deployment_state, part.chunks_done):
        part.progressed_at = now
    return before != (part.state, part.deployment_state, part.chunks_done, part.reason)


def _reopen(session: Session, rollout: Rollout, part: RolloutDevice, *, now: datetime) -> None:
    """A device took back a success. A running rollout halts by its own rules; a completed one says so, and is an operator's to judge:
    weeks later, one bad disk must not take a whole fleet back."""
    name = name_of(get_release(session, rollout.release_id))
    detail = f"{name} was given up after it had been committed: {part.reason}"
    raise_alert(session, "device_rolled_back", severity=Severity.WARNING, detail=detail, device=part.device_id, subject=rollout.id, now=now)
    if rollout.state is not RolloutState.COMPLETED:
        return
    decision, why = _judge(session, rollout, part.phase)
    rollout.reason = f"reopened: {part.device_id} went back after its success: {part.reason}"[:MAX_REASON_CHARS]
    record(session, "rollout.reopened", actor="system", subject=rollout.id, detail={"device": part.device_id, "reason": part.reason})
    if decision is Decision.HALT:  # as many as would have halted it
        phase = rollout.phases[part.phase]["name"]
        detail = f"after it was completed, phase {phase}: {why}"
        raise_alert(session, "rollout_reopened", severity=Severity.CRITICAL, detail=detail, subject=rollout.id, now=now)


def _note_way_back(part: RolloutDevice, report: DeploymentReport, now: datetime) -> bool:
    part.heard_at = now
    if report.state is not DeploymentState.COMMITTED or part.reverted_at is not None:
        return False
    part.reverted_at = now
    if part.state in OPEN_STATES or part.state is RolloutDeviceState.UNRESPONSIVE:
        part.state, part.finished_at = RolloutDeviceState.SKIPPED, now
        part.reason = f"the rollout ended; it serves {report.model}/{report.version}"
    return True


def _give_up_on_silent(session: Session, rollout: Rollout, now: datetime) -> None:
    query = select(RolloutDevice).where(
        RolloutDevice.rollout_id == rollout.id,
        col(RolloutDevice.state).in_(_WORKING_STATES),
        col(RolloutDevice.progressed_at) < now - timedelta(seconds=rollout.deadline_s),
    )
    for part in session.exec(query):
        since = part.progressed_at or part.sent_at or rollout.created_at
        if is_overdue(
            part.state,
            part.deployment_state,
            progressed_at=since,
            now=now,
            deadline_s=rollout.deadline_s,
            probation_s=rollout.probation_s,
        ):
            what = f"no progress after {part.deployment_state}" if part.deployment_state else "nothing heard"
            part.state, part.finished_at = RolloutDeviceState.UNRESPONSIVE, now
            part.reason = f"{what} for {rollout.deadline_s:g} s"
            tell(session, rollout, device=part.device_id)
    session.flush()


def _why_halt(session: Session, rollout: Rollout) -> str:
    release = get_release(session, rollout.release_id)
    if release.state is not ReleaseState.PUBLISHED:
        return f"release {name_of(release)} was {release.state.value}" + (f": {release.reason}" if release.reason else "")
    for phase in range(rollout.current_phase + 1):  # earlier ones too: a device may fail after its phase was passed
        decision, reason = _judge(session, rollout, phase)
        if decision is Decision.HALT:
            return f"phase {rollout.phases[phase]['name']}: {reason}"
    return ""


def _judge(session: Session, rollout: Rollout, phase: int) -> tuple[Decision, str]:
    session.flush()
    counts = count_devices(session, [rollout.id])[rollout.id].get(phase, {})
    bad = (RolloutDeviceState.FAILED, RolloutDeviceState.UNRESPONSIVE)
    outcome = PhaseOutcome(
        open=sum(counts.get(state, 0) for state in OPEN_STATES),
        succeeded=counts.get(RolloutDeviceState.SUCCEEDED, 0),
        failed=counts.get(RolloutDeviceState.FAILED, 0),
        unresponsive=counts.get(RolloutDeviceState.UNRESPONSIVE, 0),
        skipped=counts.get(RolloutDeviceState.SKIPPED, 0),
        example=_example(session, rollout, phase, bad) if any(counts.get(state) for state in bad) else "",
    )
    return judge_phase(outcome, max_failures=parse_phases(rollout.phases)[phase].max_failures)


def _example(session: Session, rollout: Rollout, phase: int, states: Iterable[RolloutDeviceState]) -> str:
    query = select(RolloutDevice).where(
        RolloutDevice.rollout_id == rollout.id, RolloutDevice.phase == phase, col(RolloutDevice.state).in_(list(states))
    )
    part = session.exec(query.order_by(col(RolloutDevice.id)).limit(1)).first()
    return f"{part.device_id}: {part.reason}" if part else ""


def _halt(session: Session, rollout: Rollout, reason: str, *, director: Director, now: datetime) -> None:
    rollout.state, rollout.reason, rollout.finished_at = RolloutState.HALTED, reason, now
    skip_pending(session, rollout, reason="the rollout was halted before its turn", now=now)
    if rollout.revert_on_halt:
        take_back(session, rollout, director=director, now=now, succeeded_too=True)
    record(session, "rollout.halted", actor="system", subject=rollout.id, detail={"reason": reason})
    raise_alert(session, "rollout_halted", severity=Severity.CRITICAL, detail=reason, subject=rollout.id, now=now)
    tell(session, rollout)
