"""The rules of a rollout: who comes in which phase, what a report means, and when to go on, wait or stop. Pure."""

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from covey_contract.messages import DeploymentState
from covey_server.rollouts.models import RolloutDeviceState

MAX_PHASES = 20


@dataclass(frozen=True, slots=True)
class Phase:
    """One step of a rollout: named devices, a count or a share of all. The last phase also takes every device that is left."""

    name: str
    max_failures: int = 0  # more than this many failed or silent devices halt the rollout
    devices: tuple[str, ...] = ()
    count: int | None = None
    percent: float | None = None  # of all devices of the rollout, rounded up


class Decision(StrEnum):
    """What to do with a phase."""

    ADVANCE = "advance"  # every device is done and enough succeeded
    HOLD = "hold"  # some are still at work
    HALT = "halt"  # too many failed


@dataclass(frozen=True, slots=True)
class PhaseOutcome:
    """How many of a phase's devices are where."""

    open: int = 0  # pending, sent or active
    succeeded: int = 0
    failed: int = 0
    unresponsive: int = 0
    skipped: int = 0
    example: str = ""  # a reason that a failed device gave


def check_phases(phases: Sequence[Phase]) -> str:
    """What is wrong with the phases of a rollout, or ""."""
    if not 1 <= len(phases) <= MAX_PHASES:
        return f"a rollout has 1 to {MAX_PHASES} phases, got {len(phases)}"
    for phase in phases:
        fault = _phase_fault(phase, is_last=phase is phases[-1])
        if fault:
            return f"phase {phase.name} {fault}"
    named = [device for phase in phases for device in phase.devices]
    twice = [device for device, times in Counter(named).items() if times > 1]
    return f"device {twice[0]} is named twice" if twice else ""


def assign_phases(devices: Iterable[str], phases: Sequence[Phase], *, salt: str) -> dict[str, int]:
    """Which phase each device comes in.

    Devices that are named come where they are named; the others are taken in the order of a hash, so that the same rollout
    gives the same answer anywhere and another one (another `salt`) does not always meet the same canaries.
    """
    every = set(devices)
    phase_of = {device: number for number, phase in enumerate(phases) for device in phase.devices if device in every}
    waiting = sorted(every - set(phase_of), key=lambda device: hashlib.sha256(f"{salt}/{device}".encode()).digest())
    for number, phase in enumerate(phases):
        size = _size(phase, len(every))
        for device in waiting[:size]:
            phase_of[device] = number
        del waiting[:size]
    for device in waiting:
        phase_of[device] = len(phases) - 1
    return phase_of


def judge_phase(outcome: PhaseOutcome, *, max_failures: int) -> tuple[Decision, str]:
    """What to do with a phase and, if it is to halt, why. Silence counts as failure."""
    failures = outcome.failed + outcome.unresponsive
    if failures > max_failures:
        return Decision.HALT, f"{_failures(outcome)}, {max_failures} allowed" + (f": {outcome.example}" if outcome.example else "")
    if outcome.open:
        return Decision.HOLD, ""
    if failures and not outcome.succeeded:
        # Otherwise a canary phase of one device that may fail once would prove nothing and let everybody follow.
        return Decision.HALT, f"{_failures(outcome)} and none succeeded" + (f": {outcome.example}" if outcome.example else "")
    return Decision.ADVANCE, ""


def is_overdue(
    state: RolloutDeviceState, deployment: str, *, progressed_at: datetime, now: datetime, deadline_s: float, probation_s: float
) -> bool:
    """Whether a device that was told has made no progress for too long. Probation is long on purpose and does not count."""
    if state not in {RolloutDeviceState.SENT, RolloutDeviceState.ACTIVE}:
        return False
    allowed_s = deadline_s + (probation_s if deployment == DeploymentState.PROBATION.value else 0.0)
    return now - progressed_at > timedelta(seconds=allowed_s)


_S = RolloutDeviceState
_D = DeploymentState
_WORKING = (_D.FETCHING, _D.VERIFYING, _D.STAGED, _D.ACTIVATING, _D.PROBATION)
_BROKEN = (_D.ROLLED_BACK, _D.REFUSED)


def _row(*, idle: _S, working: _S, committed: _S, rolling_back: _S, broken: _S) -> dict[_D, _S]:
    return {
        _D.IDLE: idle,
        **dict.fromkeys(_WORKING, working),
        _D.COMMITTED: committed,
        _D.ROLLING_BACK: rolling_back,
        **dict.fromkeys(_BROKEN, broken),
    }


# What a device's part becomes when the device reports on it. A success is opened again by a later rollback; a failure stays one;
# what was given up (unresponsive, skipped) becomes what really happened, once that is certain.
TRANSITIONS: Mapping[_S, Mapping[_D, _S]] = {
    _S.PENDING: _row(idle=_S.PENDING, working=_S.ACTIVE, committed=_S.SUCCEEDED, rolling_back=_S.ACTIVE, broken=_S.FAILED),
    _S.SENT: _row(idle=_S.SENT, working=_S.ACTIVE, committed=_S.SUCCEEDED, rolling_back=_S.ACTIVE, broken=_S.FAILED),
    _S.ACTIVE: _row(idle=_S.ACTIVE, working=_S.ACTIVE, committed=_S.SUCCEEDED, rolling_back=_S.ACTIVE, broken=_S.FAILED),
    _S.SUCCEEDED: _row(idle=_S.SUCCEEDED, working=_S.SUCCEEDED, committed=_S.SUCCEEDED, rolling_back=_S.FAILED, broken=_S.FAILED),
    _S.FAILED: _row(idle=_S.FAILED, working=_S.FAILED, committed=_S.FAILED, rolling_back=_S.FAILED, broken=_S.FAILED),
    _S.UNRESPONSIVE: _row(
        idle=_S.UNRESPONSIVE, working=_S.UNRESPONSIVE, committed=_S.SUCCEEDED, rolling_back=_S.UNRESPONSIVE, broken=_S.FAILED
    ),
    _S.SKIPPED: _row(idle=_S.SKIPPED, working=_S.SKIPPED, committed=_S.SUCCEEDED, rolling_back=_S.SKIPPED, broken=_S.FAILED),
}


def next_state(state: RolloutDeviceState, reported: DeploymentState) -> RolloutDeviceState:
    """What a device's part becomes by a report on its deployment."""
    return TRANSITIONS[state][reported]


def _phase_fault(phase: Phase, *, is_last: bool) -> str:
    sizes = sum((phase.count is not None, phase.percent is not None, bool(phase.devices)))
    if sizes > 1 or (sizes == 0 and not is_last):
        return "must say one of devices, count and percent (the last may say none: all that are left)"
    if phase.count is not None and phase.count < 1:
        return f"has the count {phase.count}, at least 1 is needed"
    if phase.percent is not None and not 0 < phase.percent <= 100:
        return f"has {phase.percent} percent, it must be above 0 and at most 100"
    if phase.max_failures < 0:
        return f"allows {phase.max_failures} failures, at least 0 are needed"
    return ""


def _size(phase: Phase, total: int) -> int:
    if phase.count is not None:
        return phase.count
    if phase.percent is not None:
        # Rounded first: 7 % of 100 devices is 7.000000000000001 in floating point and must not become 8.
        return math.ceil(round(total * phase.percent / 100, 9))
    return 0


def _failures(outcome: PhaseOutcome) -> str:
    parts = [f"{outcome.failed} failed"] if outcome.failed else []
    parts += [f"{outcome.unresponsive} did not answer"] if outcome.unresponsive else []
    return " and ".join(parts)
