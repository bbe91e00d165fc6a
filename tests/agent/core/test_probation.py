"""The judge of a model in probation."""

import pytest

from covey_agent.core.jobs import InferWindow
from covey_agent.core.latencies import count_latencies
from covey_agent.core.probation import Evidence, judge, judge_proven, with_crash, with_window
from covey_contract.release import Bounds

BOUNDS = Bounds(p95_latency_ms=50.0, max_error_rate=0.05, max_constant_run=50, min_requests=0)


def window(**values: float | dict[int, int]) -> InferWindow:
    return InferWindow(**{"requests": 0, "inputs": 0, "errors": 0, **values})  # type: ignore[arg-type]  # each test names real fields


def verdict(*windows: InferWindow, bounds: Bounds = BOUNDS, final: bool = False) -> str:
    evidence = Evidence()
    for one in windows:
        evidence = with_window(evidence, one)
    return judge(evidence, bounds, final=final)


def test_silence_is_no_evidence() -> None:
    assert verdict(window(), window(), final=True) == ""


def test_good_model_passes() -> None:
    assert verdict(window(requests=1000, inputs=1000, errors=20, latencies=count_latencies([12.0] * 999)), final=True) == ""


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (window(requests=20, inputs=20, errors=5), "5 of 20 requests failed"),
        (window(requests=30, inputs=30, nonfinite=6), "6 of 30 outputs held NaN"),
        (window(requests=60, inputs=60, constant_run=51), "51 different inputs in a row"),
        (window(requests=20, inputs=20, latencies=count_latencies([80.0] * 20)), "p95 latency 81.1 ms"),
        (window(requests=2, inputs=2, errors=1, out_of_memory=1), "out of memory in 1 of 2 requests"),
    ],
)
def test_each_bound_is_held(bad: InferWindow, words: str) -> None:
    assert words in verdict(bad)


def test_one_failed_request_is_not_a_rate_until_the_end() -> None:
    assert verdict(window(requests=1, inputs=1, errors=1)) == ""
    assert verdict(window(requests=1, inputs=1, errors=1), final=True) != ""


def test_first_slow_requests_are_forgiven() -> None:
    assert verdict(window(requests=3, inputs=3, latencies=count_latencies([900.0] * 3))) == ""
    assert verdict(window(requests=3, inputs=3, p95_ms=900.0), window(requests=300, inputs=300, p95_ms=20.0)) == ""


def test_evidence_adds_up_over_windows() -> None:
    assert verdict(*[window(requests=10, inputs=10, errors=1)] * 2) == ""
    assert "3 of 30" in verdict(*[window(requests=10, inputs=10, errors=1)] * 3)


def test_too_few_requests_judge_nothing_but_crashes() -> None:
    patient = Bounds(min_requests=100)
    assert verdict(window(requests=50, inputs=50, errors=50), bounds=patient, final=True) == ""
    assert "SIGSEGV" in judge(with_crash(Evidence(), "killed by SIGSEGV"), patient)


def test_number_of_crashes_that_is_evidence_is_a_setting() -> None:
    once = with_crash(Evidence(), "killed by SIGKILL")
    assert judge(once, BOUNDS, max_crashes=2) == ""
    assert "2 time(s)" in judge(with_crash(once, "killed by SIGKILL"), BOUNDS, max_crashes=2)


def test_a_proven_model_is_not_given_up_for_one_request_without_memory() -> None:
    evidence = with_window(Evidence(), window(requests=60, inputs=60, errors=1, out_of_memory=1))
    assert judge(evidence, BOUNDS) != ""
    assert judge_proven(evidence, BOUNDS, max_crashes=3) == ""
    often = with_window(evidence, window(requests=60, inputs=60, errors=30, out_of_memory=30))
    assert "31 of 120 requests failed" in judge_proven(often, BOUNDS, max_crashes=3)
