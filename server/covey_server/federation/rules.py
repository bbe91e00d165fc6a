"""The rules of a run: whom to ask, when a round may count, when a run ends. Pure."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum

from covey_server.federation.models import ContributionState, ParticipantState


class Verdict(StrEnum):
    """What to do with a run that waits for its participants."""

    WAIT = "wait"
    GO = "go"
    GIVE_UP = "give_up"


@dataclass(frozen=True, slots=True)
class Member:
    """One accepted participant of a run as the round loop sees it."""

    device: str
    node: str  # Flower's node id


def judge_invitations(states: Sequence[ParticipantState], *, min_participants: int, is_past_deadline: bool) -> Verdict:
    """Go when everybody has answered or the deadline has passed, if enough accepted; give up when enough can no longer accept."""
    accepted = sum(1 for state in states if state is ParticipantState.ACCEPTED)
    waiting = 0 if is_past_deadline else sum(1 for state in states if state is ParticipantState.INVITED)
    if accepted + waiting < min_participants:
        return Verdict.GIVE_UP
    return Verdict.WAIT if waiting else Verdict.GO


def choose_members(members: Sequence[Member], *, online: Collection[str], refused: Collection[str]) -> list[Member]:
    """Whom to ask in the next round: accepted, online, and not one that has refused a round of this run.

    A budget does not grow back within a run; asking again each round would only fill the ledger with charges and voids.
    """
    return [member for member in sorted(members, key=lambda m: m.device) if member.node in online and member.device not in refused]


def is_everybody_here(members: Sequence[Member], *, online: Collection[str], refused: Collection[str]) -> bool:
    """Whether there is nobody left to wait for."""
    return all(member.node in online or member.device in refused for member in members)


def may_count(contributors: int, *, min_contributors: int) -> bool:
    """Whether a round has enough contributions: an average of too few shows single participants."""
    return contributors >= min_contributors


def describe_shortage(states: Sequence[ContributionState], *, number: int, needed: int) -> str:
    """Why a round could not count."""
    received = sum(1 for state in states if state is ContributionState.RECEIVED)
    refused = sum(1 for state in states if state is ContributionState.REFUSED)
    return f"round {number} had {received} contributions and needs {needed} ({refused} refused, {len(states) - received - refused} silent)"
