"""A disk that fails from one point on and works again later: full, out of inodes, or read-only. Nobody starts anything again.

While it fails: the agent lives, a model serves, and it is the one that the device reports. A bad model goes even then. When the disk
works again, the scenario comes to its end by itself, as if nothing had been.
"""

import errno
import time
from dataclasses import dataclass

from tests.fakes.poison import tame_images
from tests.faults.lane import Lane, wait_for
from tests.faults.scenarios import Scenario, newest
from tests.faults.shim import ALL_KINDS, Kind, Mode, Point
from tests.faults.sweep import PATIENCE_S, judge, template

from covey_agent.client import ClientError

FAILS_S = 1.5  # how long, at least
AFTERWARDS_S = 1.0  # several times as long as what waits for the disk waits between two tries
EXIT_STATE = 3


@dataclass(frozen=True, slots=True)
class Trouble:
    """What the disk refuses."""

    name: str
    error: int
    kinds: Kind


FULL = Trouble("full", errno.ENOSPC, Kind.WRITES | Kind.CREATES)
NO_INODES = Trouble("no inodes", errno.ENOSPC, Kind.CREATES)
READ_ONLY = Trouble("read-only", errno.EROFS, ALL_KINDS)
TROUBLES = (FULL, NO_INODES, READ_ONLY)


@dataclass
class DiskResult:
    """What became of one case."""

    trouble: str
    point: Point
    reached: bool = False
    refused_to_start: bool = False
    alarms: int = 0
    problems: list[str] | None = None


def run_disk_case(lane: Lane, scenario: Scenario, point: Point, trouble: Trouble) -> DiskResult:
    """Let the disk fail from `point` on, look, let it work again, look."""
    result = DiskResult(trouble.name, point, problems=[])
    assert result.problems is not None
    lane.reset(template(lane, scenario))
    lane.settings = scenario.settings
    lane.control.arm(point, Mode.FAIL_FROM, error=trouble.error, kinds=trouble.kinds)
    life = lane.start()
    scenario.begin(lane)

    def is_reached() -> bool:
        scenario.drive(lane)
        return lane.control.fired or life.is_over or scenario.is_done(lane)

    wait_for(is_reached, timeout_s=PATIENCE_S)
    result.reached = lane.control.fired
    if result.reached:
        result.problems += _watch_failing(lane, scenario, result)
    lane.control.disarm()
    if life.is_over:
        if life.code != EXIT_STATE:
            result.problems.append(f"the agent ended with {life.code}: {lane.last_words()}")
        result.refused_to_start = True
        lane.start()
    finished = wait_for(lambda: _drive_on(lane, scenario), timeout_s=PATIENCE_S)
    time.sleep(AFTERWARDS_S)
    if not finished:
        report = newest(lane)
        result.problems.append(f"did not come to an end: {report.deployment if report else None}\n{lane.last_words()}")
    else:
        problems, _ = judge(lane, scenario, set(), spared=False)
        result.problems += problems
    alarms = [reading.values.get("what") for reading in lane.heard.readings.values() if reading.kind == "alarm"]
    result.alarms = alarms.count("storage")
    if result.alarms > 1:
        result.problems.append(f"the disk's failure was told {result.alarms} times")
    if lane.life is not None:
        lane.stop(9)
    return result


def _drive_on(lane: Lane, scenario: Scenario) -> bool:
    scenario.drive(lane)
    return scenario.is_done(lane)


def _watch_failing(lane: Lane, scenario: Scenario, result: DiskResult) -> list[str]:
    life, problems = lane.life, list[str]()
    assert life is not None
    until = time.monotonic() + FAILS_S
    while time.monotonic() < until and not life.is_over:
        scenario.drive(lane)
        time.sleep(0.05)
    if life.is_over:
        return problems
    try:
        lane.ask(tame_images(1))
    except ClientError as exc:
        problems.append(f"nothing serves while the disk is {result.trouble}: {exc}\n{lane.last_words()}")
    return problems
