"""Whom a run asks, when it begins, when a round counts."""

import numpy as np
import pytest

from covey_server.errors import InvalidInputError
from covey_server.federation.models import ContributionState as C
from covey_server.federation.models import ParticipantState as P
from covey_server.federation.rules import (
    Member,
    Verdict,
    choose_members,
    describe_shortage,
    is_everybody_here,
    judge_invitations,
    may_count,
)
from covey_server.federation.weights import Weights, apply_average, find_fault, from_checkpoint, to_checkpoint

A, B, D = Member("a", "1"), Member("b", "2"), Member("d", "3")


@pytest.mark.parametrize(
    ("states", "late", "verdict"),
    [
        ([P.ACCEPTED, P.ACCEPTED], False, Verdict.GO),
        ([P.ACCEPTED, P.ACCEPTED, P.INVITED], False, Verdict.WAIT),
        ([P.ACCEPTED, P.ACCEPTED, P.INVITED], True, Verdict.GO),
        ([P.ACCEPTED, P.INVITED], True, Verdict.GIVE_UP),
        ([P.ACCEPTED, P.INVITED], False, Verdict.WAIT),
        ([P.ACCEPTED, P.REFUSED], False, Verdict.GIVE_UP),
        ([], False, Verdict.GIVE_UP),
    ],
)
def test_a_run_begins_when_enough_accepted_and_nobody_is_left_to_wait_for(states: list[P], late: bool, verdict: Verdict) -> None:
    assert judge_invitations(states, min_participants=2, is_past_deadline=late) is verdict


def test_only_those_who_are_online_and_did_not_refuse_are_asked() -> None:
    assert choose_members([D, B, A], online={"1", "2"}, refused={"b"}) == [A]
    assert not is_everybody_here([A, B, D], online={"1"}, refused={"b"})
    assert is_everybody_here([A, B], online={"1"}, refused={"b"})


def test_a_round_counts_from_the_needed_number_on_and_says_why_it_did_not() -> None:
    assert [may_count(n, min_contributors=2) for n in (1, 2)] == [False, True]
    assert describe_shortage([C.RECEIVED, C.REFUSED, C.MISSING], number=4, needed=2) == (
        "round 4 had 1 contributions and needs 2 (1 refused, 1 silent)"
    )


def weights(*values: float) -> Weights:
    return {"w": np.array(values, dtype=np.float32)}


def test_every_participant_counts_the_same() -> None:
    averaged = apply_average(weights(1, 1), [weights(0, 3), weights(3, 0), weights(0, 0)])
    np.testing.assert_allclose(averaged["w"], [2, 2])
    assert averaged["w"].dtype == np.float32


def test_an_average_of_nothing_is_refused() -> None:
    with pytest.raises(InvalidInputError):
        apply_average(weights(1), [])


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (weights(1, 2), ""),
        (weights(1, float("nan")), "not finite"),
        (weights(1, float("inf")), "not finite"),
        (weights(1), "shape"),
        ({"v": np.zeros(2, np.float32)}, "expected a change of w"),
        ({}, "expected a change of w"),
    ],
)
def test_a_contribution_that_would_ruin_the_model_is_noticed(change: Weights, fault: str) -> None:
    found = find_fault(change, like=weights(0, 0))
    assert (fault in found) if fault else (found == "")


def test_equal_states_give_equal_checkpoints_whatever_their_order() -> None:
    one = to_checkpoint({"a": np.ones(2, np.float32), "b": np.arange(3)})
    other = to_checkpoint({"b": np.arange(3), "a": np.ones(2, np.float32)})
    assert one == other
    back = from_checkpoint(one)
    np.testing.assert_array_equal(back["b"], [0, 1, 2])


@pytest.mark.parametrize("data", [b"", b"nonsense", b"\xff" * 100])
def test_what_is_no_checkpoint_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidInputError, match="safetensors"):
        from_checkpoint(data)


def test_a_truncated_checkpoint_is_refused() -> None:
    with pytest.raises(InvalidInputError):
        from_checkpoint(to_checkpoint({"a": np.ones(100, np.float32)})[:-4])
