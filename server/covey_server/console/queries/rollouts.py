"""Rollouts: phases with their gates, and each device's part."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import func
from sqlmodel import Session, col, select

from covey_server.console.queries.releases import title_of
from covey_server.errors import NotFoundError
from covey_server.releases.models import Release
from covey_server.rollouts.models import Rollout, RolloutDevice, RolloutDeviceState, RolloutState

PAGE_SIZE = 30
DEVICES_SHOWN = 200  # of one phase-ordered list; a larger rollout shows those that need a look first
_GOOD = {RolloutDeviceState.SUCCEEDED}
_BAD = {RolloutDeviceState.FAILED, RolloutDeviceState.UNRESPONSIVE}
_BUSY = {RolloutDeviceState.SENT, RolloutDeviceState.ACTIVE}
_LOOK_FIRST = (
    RolloutDeviceState.FAILED,
    RolloutDeviceState.UNRESPONSIVE,
    RolloutDeviceState.ACTIVE,
    RolloutDeviceState.SENT,
    RolloutDeviceState.SUCCEEDED,
    RolloutDeviceState.PENDING,
    RolloutDeviceState.SKIPPED,
)


@dataclass(frozen=True, slots=True)
class Tally:
    """How many devices stand where."""

    good: int = 0
    bad: int = 0
    busy: int = 0
    ahead: int = 0

    @property
    def total(self) -> int:
        """All devices."""
        return self.good + self.bad + self.busy + self.ahead

    @property
    def ended(self) -> int:
        """Devices that are through."""
        return self.good + self.bad


@dataclass(frozen=True, slots=True)
class RolloutLine:
    """One rollout in a list."""

    id: str
    name: str
    release_id: int
    release: str
    state: str
    reason: str
    phase: str
    tally: Tally
    created_by: str
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None


@dataclass(frozen=True, slots=True)
class RolloutPage:
    """One page of the list, newest first."""

    lines: tuple[RolloutLine, ...]
    next: str  # id of the last line, "" at the end


@dataclass(frozen=True, slots=True)
class PhaseView:
    """One phase and its gate."""

    name: str
    size: str
    max_failures: int
    mark: str  # done, now, halted, ahead
    tally: Tally


@dataclass(frozen=True, slots=True)
class DevicePart:
    """One device's part."""

    device_id: str
    phase: str
    state: str
    deployment_state: str
    reason: str
    variant: str
    variant_reason: str
    chunks_done: int
    chunks_total: int
    bytes_received: int
    rollback_ms: float | None
    heard_at: datetime | None
    finished_at: datetime | None


@dataclass(frozen=True, slots=True)
class RolloutView:
    """A rollout's page."""

    line: RolloutLine
    selector: str
    probation_s: float
    deadline_s: float
    phases: tuple[PhaseView, ...]
    devices: tuple[DevicePart, ...]

    @property
    def can_pause(self) -> bool:
        """Whether there is something to pause."""
        return self.line.state == RolloutState.RUNNING.value

    @property
    def can_resume(self) -> bool:
        """Whether it can go on; a halted rollout stays halted."""
        return self.line.state == RolloutState.PAUSED.value

    @property
    def can_cancel(self) -> bool:
        """Whether it has not ended."""
        return self.line.state in {RolloutState.DRAFT.value, RolloutState.RUNNING.value, RolloutState.PAUSED.value}

    @property
    def can_start(self) -> bool:
        """Whether it waits to be started."""
        return self.line.state == RolloutState.DRAFT.value


def list_rollouts(session: Session, *, after: str = "", states: Iterable[RolloutState] = ()) -> RolloutPage:
    """Rollouts, newest first."""
    query = select(Rollout).order_by(col(Rollout.created_at).desc(), col(Rollout.id).desc()).limit(PAGE_SIZE + 1)
    last = session.get(Rollout, after) if after else None
    if last is not None:
        query = query.where(col(Rollout.created_at) < last.created_at)
    if wanted := list(states):
        query = query.where(col(Rollout.state).in_(wanted))
    rows = session.exec(query).all()
    lines = tuple(_line(session, row) for row in rows[:PAGE_SIZE])
    return RolloutPage(lines, lines[-1].id if len(rows) > PAGE_SIZE else "")


def get_rollout(session: Session, rollout_id: str) -> RolloutView:
    """One rollout. Raises NotFoundError."""
    row = session.get(Rollout, rollout_id)
    if row is None:
        raise NotFoundError("rollout", rollout_id)
    return RolloutView(
        line=_line(session, row),
        selector=_selector_text(row.selector),
        probation_s=row.probation_s,
        deadline_s=row.deadline_s,
        phases=_phases(session, row),
        devices=_devices(session, row),
    )


def _line(session: Session, row: Rollout) -> RolloutLine:
    return RolloutLine(
        id=row.id,
        name=row.name or row.id,
        release_id=row.release_id,
        release=title_of(session.get(Release, row.release_id)),
        state=row.state.value,
        reason=row.reason,
        phase=_phase_name(row, row.current_phase),
        tally=_tally(session, row.id),
        created_by=row.created_by,
        created_at=row.created_at,
        started_at=row.started_at,
        finished_at=row.finished_at,
    )


def _tally(session: Session, rollout_id: str, phase: int | None = None) -> Tally:
    query = select(RolloutDevice.state, func.count()).where(RolloutDevice.rollout_id == rollout_id).group_by(col(RolloutDevice.state))
    if phase is not None:
        query = query.where(RolloutDevice.phase == phase)
    counts = dict(session.exec(query).all())
    good, bad, busy = (sum(counts.get(state, 0) for state in states) for states in (_GOOD, _BAD, _BUSY))
    return Tally(good, bad, busy, sum(counts.values()) - good - bad - busy)


def _phases(session: Session, row: Rollout) -> tuple[PhaseView, ...]:
    views = []
    for place, phase in enumerate(row.phases):
        is_over = place < row.current_phase or row.state is RolloutState.COMPLETED
        at_it = "halted" if row.state is RolloutState.HALTED else "now"
        mark = "done" if is_over else at_it if place == row.current_phase and row.state is not RolloutState.DRAFT else "ahead"
        views.append(
            PhaseView(_phase_name(row, place), _size_text(phase), int(phase.get("max_failures") or 0), mark, _tally(session, row.id, place))
        )
    return tuple(views)


def _devices(session: Session, row: Rollout) -> tuple[DevicePart, ...]:
    parts: list[RolloutDevice] = []
    for state in _LOOK_FIRST:
        if len(parts) < DEVICES_SHOWN:
            query = select(RolloutDevice).where(RolloutDevice.rollout_id == row.id, RolloutDevice.state == state)
            parts += session.exec(query.order_by(col(RolloutDevice.id)).limit(DEVICES_SHOWN - len(parts)))
    if len(parts) < DEVICES_SHOWN:  # all of them fit: the order of delivery reads best
        parts.sort(key=lambda part: (part.phase, part.device_id))
    return tuple(
        DevicePart(
            device_id=part.device_id,
            phase=_phase_name(row, part.phase),
            state=part.state.value,
            deployment_state=part.deployment_state,
            reason=part.reason,
            variant=part.variant,
            variant_reason=part.variant_reason,
            chunks_done=part.chunks_done,
            chunks_total=part.chunks_total,
            bytes_received=part.bytes_received,
            rollback_ms=part.rollback_ms,
            heard_at=part.heard_at,
            finished_at=part.finished_at,
        )
        for part in parts
    )


def _phase_name(row: Rollout, place: int) -> str:
    if 0 <= place < len(row.phases):
        return str(row.phases[place].get("name") or f"phase {place + 1}")
    return f"phase {place + 1}"


def _size_text(phase: dict[str, Any]) -> str:
    if phase.get("devices"):
        return ", ".join(map(str, phase["devices"]))
    if phase.get("count"):
        return f"{phase['count']} device{'' if phase['count'] == 1 else 's'}"
    if phase.get("percent"):
        return f"{phase['percent']:g} % of the fleet chosen"
    return "all the rest"


def _selector_text(selector: dict[str, Any]) -> str:
    devices, labels = selector.get("devices"), selector.get("labels")
    if devices:
        return ", ".join(map(str, devices[:10])) + (f" and {len(devices) - 10} more" if len(devices) > 10 else "")
    if labels:
        return ", ".join(f"{key}={value}" for key, value in labels.items())
    return "every device"
