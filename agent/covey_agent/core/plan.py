"""What to do next: a pure comparison of what runs with what is desired.

Rules:
- The highest generation wins; whether an order is new enough even to be looked at is decided by `is_newer`.
- A deployment id is carried out at most once, whatever its result.
- The deploy child verifies what it carries out. Whatever the agent would do by itself on an order (give up a running deployment,
  call it done, lift a quarantine, raise the lowest generation that it still accepts) it does only once a child has verified it.
- A newer desired state supersedes a running deployment, except one that asks for the very same release, or for nothing while the
  new model is already serving.
"""

from collections.abc import Collection
from dataclasses import dataclass
from enum import Enum

from covey_agent.core.machine import IN_FLIGHT, Machine
from covey_contract.messages import DeploymentState, Desired, Profile


@dataclass(frozen=True, slots=True)
class Current:
    """What `next_steps` compares with."""

    profile: Profile
    machine: Machine
    committed_manifest: str  # digest of the release manifest in the committed slot, "" if none
    attempted: Collection[str]  # deployment ids
    quarantine: Collection[str]  # digests


@dataclass(frozen=True, slots=True)
class Wanted:
    """A desired state as it came, and whether a child has verified its signature."""

    desired: Desired
    verified: bool


class Step(Enum):
    """One thing to do; `next_steps` is asked again after each has been done."""

    VERIFY = "verify"  # let a child verify the order
    LIFT_QUARANTINE = "lift_quarantine"  # of the digests that the order releases
    SUPERSEDE = "supersede"  # give up the running deployment
    BEGIN = "begin"  # carry the order out
    CONFIRM = "confirm"  # it runs already
    REFUSE = "refuse"  # it must not be attempted; the reason says why


@dataclass(frozen=True, slots=True)
class NextStep:
    """A step and, where one is due, the reason for the report."""

    step: Step
    reason: str = ""


def is_newer(generation: int, *, floor: int, candidate: int) -> bool:
    """Whether an arriving order is worth a look: newer than all that was verified and all that is being tried."""
    return generation > max(floor, candidate)


def next_steps(current: Current, wanted: Wanted | None) -> list[NextStep]:
    """What to do now, in order; usually one step or none."""
    if wanted is None or _is_being_carried_out(current.machine, wanted.desired):
        return []
    steps = _steps(current, wanted.desired)
    if not wanted.verified and (not steps or steps[0].step is not Step.BEGIN):
        return [NextStep(Step.VERIFY)]
    return steps


def _is_being_carried_out(machine: Machine, desired: Desired) -> bool:
    """The deploy child verifies it, or has."""
    return machine.state in IN_FLIGHT and machine.deployment is not None and machine.deployment.id == desired.deployment


def _steps(current: Current, desired: Desired) -> list[NextStep]:
    lifted = set(desired.released_from_quarantine) & set(current.quarantine)
    steps = [NextStep(Step.LIFT_QUARANTINE)] if lifted else []
    if current.machine.state in IN_FLIGHT:
        return steps + _while_running(current, desired)
    return steps + _at_rest(current, desired, quarantine=set(current.quarantine) - lifted)


def _while_running(current: Current, desired: Desired) -> list[NextStep]:
    machine = current.machine
    running = machine.deployment
    if running is None or desired.generation <= running.generation or machine.state is DeploymentState.ROLLING_BACK:
        return []
    in_probation = machine.state is DeploymentState.PROBATION
    keeps = in_probation if desired.release is None else desired.release.manifest == running.manifest
    return [] if keeps else [NextStep(Step.SUPERSEDE, f"superseded by generation {desired.generation}")]


def _at_rest(current: Current, desired: Desired, *, quarantine: set[str]) -> list[NextStep]:
    if desired.release is None or not desired.deployment or desired.deployment in current.attempted:
        return []
    if current.profile is Profile.PARTNER:
        return [NextStep(Step.REFUSE, "this agent runs with the profile partner, which deploys nothing")]
    if desired.release.manifest in quarantine:
        return [NextStep(Step.REFUSE, "this release is quarantined on this device")]
    if desired.release.manifest == current.committed_manifest:
        return [NextStep(Step.CONFIRM, "already running")]
    return [NextStep(Step.BEGIN)]
