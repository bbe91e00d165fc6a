"""The rounds of one run, as the ServerApp drives them: charge, send, collect, average, keep, measure, again.

    conduct(run_id, flower_run="123", desk=Desk(...), link=GridLink(grid), judge=TaskJudge(...))

In each round, in this order, each step committed before the next begins:
1. the participants' charges are in the ledger;
2. the round is sent; answers come or the time is up. A refusal voids its charge; silence does not;
3. the contributions are averaged, the new weights stored by digest and named by the run and the round.

So whatever dies, the newest checkpoint and the ledger agree, and a new Flower run continues after the last finished round. A
round that was charged and not finished is asked for again under the same charges: a participant that trained it sends the same
bytes again, one that did not trains it now.
"""

import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from covey_contract.ids import DeviceId
from covey_server.federation.desk import Desk, RunTerms
from covey_server.federation.models import RunState
from covey_server.federation.rules import Member, choose_members, is_everybody_here, may_count
from covey_server.federation.weights import State, Weights, apply_average, find_fault

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Answer:
    """What one participant sent back."""

    node: str
    trained: bool  # or may have: only a clear refusal is False
    reason: str = ""
    change: Weights = field(default_factory=dict)
    seconds: float = 0.0


class RoundLink(Protocol):
    """Flower, as the loop needs it."""

    def online(self) -> set[str]:
        """Node ids that are connected."""
        ...

    def send(self, nodes: Sequence[str], *, run: str, number: int, weights: Weights, timeout_s: float) -> None:
        """Ask these nodes for one round."""
        ...

    def collect(self) -> list[Answer]:
        """Answers to the newest `send` that have come since the last call."""
        ...


class Judge(Protocol):
    """The task's code, as the loop needs it."""

    def first_state(self) -> State:
        """The untrained model's whole state."""
        ...

    def trained_names(self, state: State) -> list[str]:
        """Which of its parts rounds change."""
        ...

    def measure(self, state: State) -> tuple[float, float] | None:
        """Accuracy and loss on the server's held-out data; None if it has none."""
        ...


@dataclass(frozen=True, slots=True)
class Pace:
    """Waiting times in seconds."""

    poll_s: float = 0.25
    gather_s: float = 60.0  # for everybody to come online before the first round; then it begins with those who are there
    return_s: float = 120.0  # for enough to come back online between rounds
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep


class _EndedError(Exception):
    """The run is over for a reason that is already written down, or belongs to another Flower run."""


def conduct(run_id: str, *, flower_run: str, desk: Desk, link: RoundLink, judge: Judge, pace: Pace | None = None) -> None:
    """Drive a run to its end, from wherever it stands."""
    loop = _Loop(desk.open_run(run_id, flower_run=flower_run), desk=desk, link=link, judge=judge, pace=pace or Pace())
    try:
        loop.run()
    except _EndedError as end:
        logger.info("run %s: %s", run_id, end)


class _Loop:
    def __init__(self, terms: RunTerms, *, desk: Desk, link: RoundLink, judge: Judge, pace: Pace) -> None:
        self._terms = terms
        self._desk = desk
        self._link = link
        self._judge = judge
        self._pace = pace
        self._state: State = {}
        self._trained: list[str] = []

    def run(self) -> None:
        """All rounds that are left."""
        self._state = self._desk.read_checkpoint(self._terms) or self._first()
        self._trained = self._judge.trained_names(self._state)
        for number in range(self._terms.rounds_done + 1, self._terms.rounds_total + 1):
            self._round(number)
        self._desk.end_run(self._terms, RunState.COMPLETED, reason=f"all {self._terms.rounds_total} rounds are done")

    def _first(self) -> State:
        state = self._judge.first_state()
        self._desk.keep_first(self._terms, state, measured=self._judge.measure(state))
        return state

    def _round(self, number: int) -> None:
        members = self._gather(is_first=number == self._terms.rounds_done + 1)
        self._desk.open_round(self._terms, number, [member.device for member in members])
        weights: Weights = {name: self._state[name].astype("float32") for name in self._trained}
        self._link.send(
            [member.node for member in members], run=self._terms.run, number=number, weights=weights, timeout_s=self._terms.round_timeout_s
        )
        changes = self._collect(number, members, weights)
        if not may_count(len(changes), min_contributors=self._terms.min_contributors):
            self._give_up(number)
        averaged = apply_average(weights, [changes[device] for device in sorted(changes)])
        self._state = {**self._state, **averaged}
        self._desk.close_round(self._terms, number, self._state, measured=self._judge.measure(self._state))

    def _collect(self, number: int, members: Sequence[Member], weights: Weights) -> Mapping[DeviceId, Weights]:
        waiting = {member.node: member.device for member in members}
        changes: dict[DeviceId, Weights] = {}
        deadline = self._pace.clock() + self._terms.round_timeout_s
        while waiting and self._pace.clock() < deadline:
            answers = [answer for answer in self._link.collect() if answer.node in waiting]
            for answer in answers:
                device = waiting.pop(answer.node)
                fault = find_fault(answer.change, like=weights) if answer.trained else ""
                if answer.trained and not fault:
                    changes[DeviceId(device)] = answer.change
                    self._desk.note_received(self._terms, number, device, seconds=answer.seconds)
                elif answer.trained:
                    reason = answer.reason or f"the contribution cannot be used: {fault}"
                    self._desk.note_missing(self._terms, number, [device], reason=reason)
                else:
                    self._desk.note_refused(self._terms, number, device, reason=answer.reason)
            if waiting and not answers:
                self._check_wanted()
                self._pace.sleep(self._pace.poll_s)
        if waiting:
            reason = f"no answer within {self._terms.round_timeout_s:.0f} s"
            self._desk.note_missing(self._terms, number, list(waiting.values()), reason=reason)
        return changes

    def _gather(self, *, is_first: bool) -> list[Member]:
        """Those to ask, once everybody or, after a while, enough of them are online."""
        begin = self._pace.clock()
        while True:
            self._check_wanted()
            members, refused = self._desk.read_members(self._terms)
            online = self._link.online()
            chosen = choose_members(members, online=online, refused=refused)
            waited = self._pace.clock() - begin
            if len(chosen) >= self._terms.min_contributors and self._may_begin(members, online, refused, waited, is_first=is_first):
                return chosen
            able = len(members) - len(refused)
            if able < self._terms.min_contributors or waited > self._pace.return_s:
                self._end_short(f"{len(chosen)} participants are online, {able} would take part, {self._terms.min_contributors} are needed")
            self._pace.sleep(self._pace.poll_s)

    def _may_begin(
        self, members: Sequence[Member], online: Collection[str], refused: Collection[str], waited: float, *, is_first: bool
    ) -> bool:
        return not is_first or is_everybody_here(members, online=online, refused=refused) or waited > self._pace.gather_s

    def _give_up(self, number: int) -> None:
        self._end_short(self._desk.describe_round(self._terms, number))

    def _end_short(self, reason: str) -> None:
        """End early: with the model so far if there is one, else as failed."""
        done = self._desk.rounds_done(self._terms)
        if done:
            self._desk.end_run(self._terms, RunState.COMPLETED, reason=f"ended early after round {done}: {reason}")
        else:
            self._desk.end_run(self._terms, RunState.FAILED, reason=reason)
        raise _EndedError(reason)

    def _check_wanted(self) -> None:
        if not self._desk.is_wanted(self._terms):
            raise _EndedError("it was stopped, or another Flower run carries it on")
