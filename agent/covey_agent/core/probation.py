"""The judge of a model in probation: adds up what its worker reports and says when that is evidence enough.

Rules:
- A crash of the worker is evidence by itself; everything else waits for the release's `min_requests`.
- Three errors at least make a rate: the first request of a probation is not a verdict. At the end of probation any rate counts.
- Latency is judged on the p95 over all requests of the probation, and not before 20 of them: the first ones warm up caches.
- Too little memory is evidence at once: the next request would find no more of it.
- What was proven is held to the same bounds, over stretches of time and with more requests each (`Aftercare`), as long as there is
  a way back.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import msgspec

from covey_agent.core.jobs import InferWindow
from covey_agent.core.latencies import add_latencies, percentile_ms
from covey_contract.release import Bounds

MIN_ERRORS = 3
MIN_REQUESTS_FOR_LATENCY = 20
MIN_REQUESTS_PROVEN = 50  # what passed its probation is not given up for a handful


@dataclass(frozen=True, slots=True)
class Evidence:
    """What probation has seen so far."""

    requests: int = 0
    inputs: int = 0
    errors: int = 0
    nonfinite: int = 0
    constant_run: int = 0
    out_of_memory: int = 0
    latencies: Mapping[int, int] = field(default_factory=dict)  # buckets of core/latencies.py
    crashes: int = 0
    crash_reason: str = ""


def with_window(evidence: Evidence, window: InferWindow) -> Evidence:
    """`evidence` and one more window."""
    return replace(
        evidence,
        requests=evidence.requests + window.requests,
        inputs=evidence.inputs + window.inputs,
        errors=evidence.errors + window.errors,
        nonfinite=evidence.nonfinite + window.nonfinite,
        constant_run=max(evidence.constant_run, window.constant_run),
        out_of_memory=evidence.out_of_memory + window.out_of_memory,
        latencies=add_latencies(evidence.latencies, window.latencies),
    )


def with_crash(evidence: Evidence, reason: str) -> Evidence:
    """`evidence` and one more death of the worker."""
    return replace(evidence, crashes=evidence.crashes + 1, crash_reason=reason)


def judge(evidence: Evidence, bounds: Bounds, *, max_crashes: int = 1, final: bool = False) -> str:
    """Why the model must go, or "" if nothing speaks against it. `final`: probation ends now."""
    if evidence.crashes >= max_crashes:
        return f"the worker died {evidence.crashes} time(s) in probation: {evidence.crash_reason}"
    if evidence.out_of_memory:
        return f"out of memory in {evidence.out_of_memory} of {evidence.requests} requests"
    if evidence.requests == 0 or evidence.requests < bounds.min_requests:
        return ""
    return (
        # NaN first: those requests count as failed too, and this says why.
        _rate("outputs held NaN or infinity", evidence.nonfinite, max(evidence.inputs, evidence.nonfinite), bounds, final=final)
        or _rate("requests failed", evidence.errors, evidence.requests, bounds, final=final)
        or _constant(evidence, bounds)
        or _latency(evidence, bounds)
    )


def judge_proven(evidence: Evidence, bounds: Bounds, *, max_crashes: int) -> str:
    """The same for a model that has passed its probation, over one stretch of time.

    Requests that found no memory count as failed ones here: one client's huge batch must not cost a model that was proven.
    """
    least = max(bounds.min_requests, MIN_REQUESTS_PROVEN)
    return judge(replace(evidence, out_of_memory=0), msgspec.structs.replace(bounds, min_requests=least), max_crashes=max_crashes)


def _rate(what: str, bad: int, total: int, bounds: Bounds, *, final: bool) -> str:
    if bad < (1 if final else MIN_ERRORS) or bad <= bounds.max_error_rate * total:
        return ""
    return f"{bad} of {total} {what} ({bad / total:.1%}, allowed {bounds.max_error_rate:.1%})"


def _constant(evidence: Evidence, bounds: Bounds) -> str:
    if bounds.max_constant_run <= 0 or evidence.constant_run <= bounds.max_constant_run:
        return ""
    return f"{evidence.constant_run} different inputs in a row got the very same output (allowed {bounds.max_constant_run})"


def _latency(evidence: Evidence, bounds: Bounds) -> str:
    if bounds.p95_latency_ms <= 0 or evidence.requests < MIN_REQUESTS_FOR_LATENCY:
        return ""
    p95 = percentile_ms(evidence.latencies, 0.95)
    if p95 <= bounds.p95_latency_ms:
        return ""
    return f"p95 latency {p95:.1f} ms over {evidence.requests} requests (allowed {bounds.p95_latency_ms:.1f} ms)"
