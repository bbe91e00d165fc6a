"""What a run would cost, and whether it can work: decided before anybody is asked.

Pure: it is given each participant's ledger as mechanisms and an accountant, and says epsilon round by round. The server refuses
what breaks these rules; each participant's own policy decides again, and no server can override that.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from covey_contract.messages import PrivacyPlan
from covey_server.privacy.accounting import Mechanism

Accountant = Callable[[Sequence[Mechanism], float], float]  # (mechanisms, delta) -> epsilon
RECORD_LEVEL = "record"
NO_PRIVACY = "none"
MAX_DELTA = 1e-2  # a larger delta allows to publish one record in a hundred outright
LEAST_NOISE = 0.3  # below, one step alone costs more than any sensible budget
MAX_ROUNDS = 10_000


@dataclass(frozen=True, slots=True)
class Forecast:
    """One participant's epsilon: what it has spent on this dataset, and what it will have after each round."""

    participant: str
    spent: float
    after_round: tuple[float, ...]

    @property
    def total(self) -> float:
        """After the last round."""
        return self.after_round[-1] if self.after_round else self.spent


@dataclass(frozen=True, slots=True)
class Assessment:
    """What the planner found. `refusals` empty: it can work."""

    epsilon: float  # of this run alone, for a participant that takes part in every round
    forecasts: tuple[Forecast, ...]
    rounds_within_limit: int  # how many of the rounds every participant can join below the limit
    refusals: tuple[str, ...]


def mechanism_of(plan: PrivacyPlan, *, rounds: int = 1) -> Mechanism:
    """What `rounds` rounds of a plan do to one participant's dataset."""
    noise = plan.noise_multiplier if plan.level == RECORD_LEVEL and plan.clipping_norm > 0 else 0.0
    return Mechanism(noise_multiplier=noise, sample_rate=plan.sample_rate or 1.0, steps=plan.steps * rounds)


def check_plan(plan: PrivacyPlan, *, rounds: int, allow_unprotected: bool) -> list[str]:
    """What is wrong with a plan in itself."""
    faults = []
    if not 1 <= rounds <= MAX_ROUNDS:
        faults.append(f"rounds must be 1 to {MAX_ROUNDS}, got {rounds}")
    if plan.steps < 1:
        faults.append(f"steps per round must be at least 1, got {plan.steps}")
    if plan.level == NO_PRIVACY:
        return faults if allow_unprotected else [*faults, "the plan protects nobody; say so explicitly if that is meant"]
    if plan.level != RECORD_LEVEL:
        return [*faults, f"the level must be {RECORD_LEVEL} or {NO_PRIVACY}, got {plan.level}"]
    if not 0 < plan.delta <= MAX_DELTA:
        faults.append(f"delta must be above 0 and at most {MAX_DELTA}, and at most 1/n at every participant, got {plan.delta}")
    if plan.noise_multiplier < LEAST_NOISE:
        faults.append(f"the noise multiplier must be at least {LEAST_NOISE}, got {plan.noise_multiplier}")
    if not plan.clipping_norm > 0:
        faults.append(f"the clipping norm must be above 0, got {plan.clipping_norm}")
    if not 0 < plan.sample_rate <= 1:
        faults.append(f"the sample rate must be above 0 and at most 1, got {plan.sample_rate}")
    return faults


def assess(
    plan: PrivacyPlan,
    *,
    rounds: int,
    histories: Mapping[str, Sequence[Mechanism]],
    max_epsilon: float,
    min_participants: int,
    allow_unprotected: bool,
    epsilon_of: Accountant,
) -> Assessment:
    """Predict a run. `histories`: each participant's mechanisms so far on the dataset; the plan is assumed for every round."""
    refusals = check_plan(plan, rounds=rounds, allow_unprotected=allow_unprotected)
    if len(histories) < min_participants:
        refusals.append(f"the run needs {min_participants} participants, {len(histories)} are named")
    if refusals or plan.level == NO_PRIVACY:
        return Assessment(epsilon=math.inf, forecasts=(), rounds_within_limit=0 if refusals else rounds, refusals=tuple(refusals))
    forecasts = tuple(_forecast(name, plan, rounds, history, epsilon_of) for name, history in sorted(histories.items()))
    worst = [max(f.after_round[number] for f in forecasts) for number in range(rounds)]
    within = sum(1 for epsilon in worst if epsilon <= max_epsilon)
    for forecast in forecasts:
        if forecast.total > max_epsilon:
            fits = sum(1 for epsilon in forecast.after_round if epsilon <= max_epsilon)
            refusals.append(
                f"{forecast.participant} would reach epsilon {forecast.total:.2f}, above the limit of {max_epsilon:g}: "
                f"{fits} of {rounds} rounds fit (spent before: {forecast.spent:.2f}); use more noise, a smaller sample rate or fewer steps"
            )
    alone = epsilon_of([mechanism_of(plan, rounds=rounds)], plan.delta)
    return Assessment(epsilon=alone, forecasts=forecasts, rounds_within_limit=within, refusals=tuple(refusals))


def _forecast(name: str, plan: PrivacyPlan, rounds: int, history: Sequence[Mechanism], epsilon_of: Accountant) -> Forecast:
    after = tuple(epsilon_of([*history, mechanism_of(plan, rounds=number)], plan.delta) for number in _milestones(rounds))
    return Forecast(participant=name, spent=epsilon_of(history, plan.delta), after_round=_filled(after, rounds))


def _milestones(rounds: int) -> list[int]:
    """Every round of a short run; of a long one as many as are worth a second of accounting each, the last always among them."""
    if rounds <= 12:
        return list(range(1, rounds + 1))
    return sorted({1 + (rounds - 1) * index // 11 for index in range(12)})


def _filled(values: tuple[float, ...], rounds: int) -> tuple[float, ...]:
    """One value a round: a round between two milestones gets the later one's, which is never too low."""
    marks = _milestones(rounds)
    return tuple(next(value for mark, value in zip(marks, values, strict=True) if mark >= number) for number in range(1, rounds + 1))
