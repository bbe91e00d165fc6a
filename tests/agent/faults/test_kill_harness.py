"""The kill harness, bounded: a share of the points of every scenario.

Which share is rotated by the day, so that in time every point is struck in CI; `scripts/kill_harness.py` strikes at all of them.
"""

import os
import time
from collections.abc import Iterator

import pytest
from tests.fakes.services import require
from tests.faults.devices import SCENARIOS, Scenario
from tests.faults.programs import PROGRAMS, Program
from tests.faults.shim import Fault, find_compiler
from tests.faults.sweep import Tools, open_tools, sweep

pytestmark = [pytest.mark.broker, pytest.mark.runtime, pytest.mark.slow, pytest.mark.xdist_group("faults")]
SEED = int(os.environ.get("COVEY_KILL_SEED", time.time() // 86400))
SHARES = {Fault.KILL_TREE: 0.02, Fault.KILL_SELF: 0.005, Fault.TORN: 0.01}
LEAST = 60  # boundaries of a device scenario; five of them make the three hundred points that the whole harness must have


@pytest.fixture(scope="module")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tools]:
    require(find_compiler(), "a C compiler (gcc, libc6-dev)")
    with open_tools(tmp_path_factory.mktemp("faults"), devices=200) as tools:
        yield tools


@pytest.mark.parametrize("fault", [Fault.KILL_TREE, Fault.TORN], ids=lambda fault: fault.name.lower())
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.name)
def test_a_command_killed_at_any_write_leaves_old_or_new_and_can_be_repeated(tools: Tools, program: Program, fault: Fault) -> None:
    result = sweep(tools, program, fault, share=0.3, seed=SEED)
    assert result.struck > 0
    assert result.failures == [], f"seed {SEED}"


@pytest.mark.parametrize("fault", SHARES, ids=lambda fault: fault.name.lower())
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_a_device_killed_at_any_write_comes_to_rest_by_itself(tools: Tools, scenario: Scenario, fault: Fault) -> None:
    result = sweep(tools, scenario, fault, share=SHARES[fault], seed=SEED)
    assert result.boundaries >= LEAST
    assert result.struck > 0
    assert result.failures == [], f"seed {SEED}"
