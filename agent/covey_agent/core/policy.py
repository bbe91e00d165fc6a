"""A participant's own rules for training, and the ledger's rule: charge first, then train.

The policy lives in the agent's settings file on the participant's machine; nothing that the server sends can change it.

Rules:
- What is not allowed is refused: a task's code runs only if its digest is listed, a dataset is used only if it has a budget.
- Epsilon is recomputed from all charges of a dataset, at the policy's own delta, each time; there is no running number.
- A round is charged once per (run, round). Asking again for the newest charged round is allowed without a second charge if it is
  the same plan on the same dataset, and refused otherwise. An older round is never trained again: its contribution may have left
  and been forgotten since, and one charge pays for one release.
- Training without noise has no guarantee. It is refused unless the policy says `unprotected`; once done, it stays in the ledger,
  and that dataset's epsilon is `NO_GUARANTEE` for ever.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, time

import msgspec

from covey_agent.core.jobs import AskRound
from covey_agent.core.privacy import Charge
from covey_contract.messages import InviteToRun, PrivacyPlan

EpsilonOf = Callable[[Sequence[Charge], float], float]  # (charges, delta) -> epsilon
NO_GUARANTEE = 1e9  # stands for infinity, which JSON cannot carry


@dataclass(frozen=True, slots=True)
class Budget:
    """What one dataset may cost in all."""

    epsilon: float
    delta: float


@dataclass(frozen=True, slots=True)
class Policy:
    """A participant's rules; see `docs/agent.md` for the settings that make them."""

    consent: bool = True  # false: refuse everything, at once
    tasks: tuple[str, ...] = ()  # digests of task code that was reviewed here
    purposes: tuple[str, ...] = ()  # empty: any
    hours: tuple[tuple[time, time], ...] = ()  # local time, from <= t < to, may pass midnight; empty: always
    unprotected: bool = False  # allow training without noise
    budgets: Mapping[str, Budget] = field(default_factory=dict)  # dataset -> budget


@dataclass(frozen=True, slots=True)
class LedgerEntry:
    """One charge, as it stands in the append-only ledger. `at`: ms since 1970 UTC."""

    run: str
    round: int
    dataset: str
    plan: PrivacyPlan
    at: int


@dataclass(frozen=True, slots=True)
class Decision:
    """An answer with its reason. `charge`: what must be in the ledger, durably, before the answer is given."""

    allowed: bool
    reason: str
    epsilon: float = 0.0  # of the dataset, with this charge if it is allowed
    charge: LedgerEntry | None = None


def policy_hash(policy: Policy) -> str:
    """sha256 of the policy's canonical form: tells the server that it changed, not what it says."""
    return hashlib.sha256(msgspec.json.encode(policy, order="deterministic")).hexdigest()


def spent(entries: Sequence[LedgerEntry], dataset: str, delta: float, epsilon_of: EpsilonOf) -> float:
    """Epsilon at `delta` of everything that `dataset` was used for."""
    used = [entry.plan for entry in entries if entry.dataset == dataset]
    if any(_is_unprotected(plan) for plan in used):
        return NO_GUARANTEE
    charges = [
        Charge(noise_multiplier=plan.noise_multiplier, sample_rate=plan.sample_rate, steps=plan.steps) for plan in used if plan.steps
    ]
    return min(NO_GUARANTEE, epsilon_of(charges, delta)) if charges else 0.0


def decide_invitation(
    invite: InviteToRun, policy: Policy, *, ledger: Sequence[LedgerEntry], datasets: Mapping[str, str], now: datetime, epsilon_of: EpsilonOf
) -> Decision:
    """Whether to join a run: everything that can be known now, and that its first round fits into the budget."""
    refusal = _refuse_terms(invite, policy, now)
    if refusal:
        return Decision(allowed=False, reason=refusal)
    if invite.dataset not in datasets:
        return Decision(allowed=False, reason=f"there is no dataset {invite.dataset!r} on this machine")
    first = LedgerEntry(run=invite.run, round=1, dataset=invite.dataset, plan=invite.plan, at=_millis(now))
    return _within_budget(first, policy, ledger, epsilon_of)


def decide_round(
    ask: AskRound, invite: InviteToRun, policy: Policy, *, ledger: Sequence[LedgerEntry], now: datetime, epsilon_of: EpsilonOf
) -> Decision:
    """Whether this round may be trained. If `charge` is set it must be appended, durably, before the trainer hears yes."""
    refusal = _refuse_mismatch(ask, invite) or _refuse_terms(invite, policy, now)
    if refusal:
        return Decision(allowed=False, reason=refusal)
    entry = LedgerEntry(run=ask.run, round=ask.round, dataset=ask.dataset, plan=ask.plan, at=_millis(now))
    earlier = next((known for known in ledger if (known.run, known.round) == (entry.run, entry.round)), None)
    if earlier is None:
        return _within_budget(entry, policy, ledger, epsilon_of)
    if (earlier.dataset, earlier.plan) != (entry.dataset, entry.plan):
        return Decision(allowed=False, reason=f"round {ask.round} was already charged for another plan")
    if any(known.run == entry.run and known.round > entry.round for known in ledger):
        return Decision(allowed=False, reason=f"round {ask.round} was charged already, and later ones since; it is not trained again")
    epsilon = _spent_now(ledger, entry.dataset, policy, epsilon_of)
    return Decision(allowed=True, reason="already charged", epsilon=epsilon)


def parse_hours(text: str) -> tuple[time, time]:
    """`22:00-06:00` as two times. Raises ValueError with what was expected."""
    try:
        begin, end = text.split("-")
        return time.fromisoformat(begin.strip()), time.max if end.strip() == "24:00" else time.fromisoformat(end.strip())
    except ValueError as exc:
        raise ValueError(f"expected hours as HH:MM-HH:MM, got {text!r:.40}") from exc


def _refuse_mismatch(ask: AskRound, invite: InviteToRun) -> str:
    if ask.run != invite.run:
        return f"this participant was invited to run {invite.run}, not {ask.run}"
    if ask.dataset != invite.dataset or ask.plan != invite.plan:
        return "the round's dataset or privacy plan is not the one of the invitation"
    if ask.round > invite.rounds:
        return f"the invitation was for {invite.rounds} rounds, this is round {ask.round}"
    return ""


def _refuse_terms(invite: InviteToRun, policy: Policy, now: datetime) -> str:
    plan = invite.plan
    task = f"the code of task {invite.task!r} (sha256 {invite.task_digest[:12]}...)"
    in_hours = not policy.hours or any(_is_within(now.time(), begin, end) for begin, end in policy.hours)
    terms = (
        (policy.consent, "the policy of this participant consents to no training"),
        (invite.task_digest in policy.tasks, f"{task} is not allowed by the policy"),
        (not policy.purposes or invite.purpose in policy.purposes, f"the purpose {invite.purpose!r} is not allowed by the policy"),
        (in_hours, "the policy allows no training at this hour"),
        (plan.level in ("record", "none"), f"expected a privacy level 'record' or 'none', got {plan.level!r}"),
        (plan.level != "record" or not _is_unprotected(plan), "a record-level plan needs noise and a clipping norm above 0"),
        (policy.unprotected or not _is_unprotected(plan), "the policy allows no training without privacy"),
    )
    return next((reason for holds, reason in terms if not holds), "")


def _within_budget(entry: LedgerEntry, policy: Policy, ledger: Sequence[LedgerEntry], epsilon_of: EpsilonOf) -> Decision:
    if _is_unprotected(entry.plan):
        return Decision(allowed=True, reason="without privacy, as the policy allows", epsilon=NO_GUARANTEE, charge=entry)
    budget = policy.budgets.get(entry.dataset)
    if budget is None:
        return Decision(allowed=False, reason=f"the policy has no budget for dataset {entry.dataset!r}")
    before = spent(ledger, entry.dataset, budget.delta, epsilon_of)
    after = spent([*ledger, entry], entry.dataset, budget.delta, epsilon_of)
    allowed = f"{budget.epsilon:.3f} allowed at delta {budget.delta:g}"
    if after > budget.epsilon:
        reason = f"over budget: epsilon {before:.3f} spent, {after:.3f} with this round, {allowed}"
        return Decision(allowed=False, reason=reason, epsilon=before)
    return Decision(allowed=True, reason=f"epsilon {after:.3f} with this round, {allowed}", epsilon=after, charge=entry)


def _spent_now(ledger: Sequence[LedgerEntry], dataset: str, policy: Policy, epsilon_of: EpsilonOf) -> float:
    budget = policy.budgets.get(dataset)
    return spent(ledger, dataset, budget.delta, epsilon_of) if budget else NO_GUARANTEE


def _is_unprotected(plan: PrivacyPlan) -> bool:
    return plan.level == "none" or plan.noise_multiplier <= 0 or plan.clipping_norm <= 0


def _is_within(now: time, begin: time, end: time) -> bool:
    return begin <= now < end if begin <= end else now >= begin or now < end


def _millis(now: datetime) -> int:
    if now.tzinfo is None:
        raise ValueError("expected an aware time")
    return int(now.timestamp() * 1000)
