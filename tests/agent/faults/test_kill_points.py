"""The kill harness, bounded: real agents, killed at points that were recorded a moment before; all of the cheap ones, a share of the rest.

Which share is said by the seed, which changes daily and is part of every message; `python -m scripts.kill_harness` takes all points.
"""

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.fakes.nats_broker import wait_until
from tests.fakes.poison import tame_images
from tests.fakes.services import require
from tests.faults.bench import MODES, Bench, open_bench, table
from tests.faults.disk import TROUBLES, Trouble, run_disk_case
from tests.faults.fleet import BETTER, GOOD
from tests.faults.lane import QUICK, fast_folder
from tests.faults.scenarios import SCENARIOS, is_in
from tests.faults.sweep import Result, spread, template

from covey_agent.core.machine import MAX_BOOTS
from covey_contract.messages import DeploymentState

pytestmark = [pytest.mark.broker, pytest.mark.runtime, pytest.mark.slow]
SEED = int(os.environ.get("COVEY_KILL_SEED", time.time() // 86400))
LEAST = 300  # points in all
SHARES = {"before": 3, "after": 1, "child": 1, "torn": 1, "truncated": 1, "garbled": 1}  # cases of each scenario
DEPLOYMENT = next(scenario for scenario in SCENARIOS if scenario.name == "deployment")


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    require(shutil.which("cc"), "a C compiler (gcc, libc6-dev)")
    folder = Path(tempfile.mkdtemp(prefix="covey-faults-", dir=fast_folder()))
    try:
        with open_bench(folder, lanes=2) as opened:
            yield opened
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def check(bench: Bench, results: list[Result]) -> None:
    wrong = [f"{result.case}: {result.problems}" for result in results if result.problems]
    assert wrong == [], f"seed {SEED}\n{table(bench.counts(), results)}"
    assert any(result.reached for result in results)


@pytest.mark.parametrize("name", ["enrolment", "policy"])
def test_a_command_that_is_killed_can_be_given_again(bench: Bench, name: str) -> None:
    modes = [MODES[mode] for mode in ("before", "torn", "truncated")]
    check(bench, bench.sweep(spread(bench.cases(name, modes), 16, SEED)))


@pytest.mark.parametrize("name", [scenario.name for scenario in SCENARIOS])
def test_an_agent_that_is_killed_comes_to_rest_by_itself(bench: Bench, name: str) -> None:
    cases = [case for mode, count in SHARES.items() for case in spread(bench.cases(name, [MODES[mode]]), count, SEED)]
    check(bench, bench.sweep(cases))


def test_there_are_enough_points(bench: Bench) -> None:
    assert sum(len(bench.points(scenario.name)) for scenario in SCENARIOS) >= LEAST


@pytest.mark.parametrize("trouble", TROUBLES, ids=lambda trouble: trouble.name)
def test_a_disk_that_fails_stops_neither_serving_nor_what_comes_after(bench: Bench, trouble: Trouble) -> None:
    points = spread(bench.points(DEPLOYMENT.name), 2, SEED)
    results = [run_disk_case(bench.lanes[0], DEPLOYMENT, point, trouble) for point in points]
    assert [(str(result.point), result.problems) for result in results if result.problems] == [], f"seed {SEED}"


def test_a_second_agent_ends_and_the_next_one_starts_as_soon_as_the_first_is_killed(bench: Bench) -> None:
    lane = bench.lanes[0]
    lane.reset(template(lane, DEPLOYMENT))
    first = lane.start()
    assert lane.wait_for_report()
    second = lane.warm.start(
        ["run", "--state-dir", str(lane.state_dir)], role="agent", control=None, log=lane.folder / "second.log", environment=QUICK
    )
    assert second.wait() == 6
    assert f"another agent (process {first.pid})" in (lane.folder / "second.log").read_text()
    assert not first.is_over
    first.end(9)
    third = lane.start()
    heard = len(lane.heard.reports)
    assert lane.wait_for_report(after=heard), lane.last_words()
    assert not third.is_over
    assert lane.stop() == 0


def test_a_device_that_dies_again_and_again_in_probation_goes_back(bench: Bench) -> None:
    """Real kills at the same place in every life: the loop ends after a fixed number of starts, with the old model."""
    lane = bench.lanes[0]
    lane.reset(template(lane, DEPLOYMENT))
    deployment = lane.fleet.order(lane.name, BETTER, probation_s=3600)
    starts = 0
    while True:
        lane.start()
        starts += 1
        heard = len(lane.heard.reports)
        assert lane.wait_for_report(after=heard), lane.last_words()
        wait_until(
            lambda: is_in(lane, deployment, DeploymentState.PROBATION, DeploymentState.ROLLED_BACK),
            what="probation or its end",
            timeout_s=60,
        )
        if is_in(lane, deployment, DeploymentState.ROLLED_BACK):
            break
        assert starts <= MAX_BOOTS + 1
        lane.stop(9)
    assert starts == MAX_BOOTS + 2, "the one that was ordered, those that are allowed, and the one that goes back"
    assert lane.ask(tame_images(1)) == GOOD
    assert len(lane.heard.reports[-1].quarantine) == 1
    assert lane.stop() == 0
