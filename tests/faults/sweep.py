"""The sweep: record a scenario, then live through it again once for every point, killed there, and look what became of it.

For every point:
- the agent is started again until the scenario has come to its end, without any other help, in a bounded number of starts;
- what serves is the model that the scenario says, and the local API answers with it;
- the scenario's own account is right (told once, carried out once, charged once);
- no reading that was on disk when the agent died is lost, and no number stands for two readings;
- another start changes nothing.
"""

import random
import shutil
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from tests.fakes.poison import tame_images
from tests.faults.damage import Damage, damage_unsynced
from tests.faults.lane import Lane, wait_for
from tests.faults.scenarios import Scenario, newest
from tests.faults.shim import Mode, Point

MAX_STARTS = 4
T = TypeVar("T")
PATIENCE_S = 60.0
_VERIFIED_AGAIN = ("value desired", "value floor")
ROOTS = ("agent", "enroll", "policy")  # killing one of these alone kills the whole tree


@dataclass(frozen=True, slots=True)
class Case:
    """Where and how to kill."""

    scenario: str
    point: Point
    mode: Mode
    damage: Damage = Damage.NONE

    def __str__(self) -> str:
        how = self.mode.name.lower().replace("_", " ") + ("" if self.damage is Damage.NONE else f", {self.damage.value}")
        return f"{self.scenario}: {how} at {self.point}"


@dataclass
class Result:
    """What became of one case."""

    case: Case
    reached: bool = False
    starts: int = 0
    serves: int = 0
    seconds: float = 0.0
    damaged: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def template(lane: Lane, scenario: Scenario) -> Path:
    """The device as the scenario finds it, made once for each lane."""
    key = scenario.prepare.__qualname__ + scenario.name
    if key not in lane.templates:
        scenario.prepare(lane)
        target = lane.folder / f"template-{len(lane.templates)}"
        shutil.copytree(lane.state_dir, target, symlinks=True, ignore=shutil.ignore_patterns("run", "identity"))
        lane.templates[key] = target
    return lane.templates[key]


def record(lane: Lane, scenario: Scenario) -> list[Point]:
    """Live through the scenario undisturbed. Returns every point that was passed, in order."""
    lane.template = template(lane, scenario)
    lane.reset(lane.template)
    lane.settings = scenario.settings
    lane.start()
    scenario.begin(lane)
    assert _live_through(lane, scenario), f"{scenario.name} does not come to an end undisturbed\n{lane.last_words()}"
    points = lane.control.points()
    assert lane.stop() == 0, lane.last_words()
    if scenario.stops:
        points = lane.control.points()
    problems = _start_once_more(lane) + scenario.problems(lane) + _leftovers(lane.state_dir)
    assert not problems, f"{scenario.name}, undisturbed: {problems}\n{lane.last_words()}"
    return points


def run_case(lane: Lane, scenario: Scenario, case: Case) -> Result:
    """Kill at one point and see."""
    begun = time.monotonic()
    result = Result(case)
    lane.template = template(lane, scenario)
    lane.reset(lane.template)
    lane.settings = scenario.settings
    lane.control.arm(case.point, case.mode)
    lane.start()
    result.starts = 1
    scenario.begin(lane)
    durable: set[tuple[str, int]] = set()
    finished = False
    while True:
        finished = _live_through(lane, scenario)
        if not finished and lane.life is not None and lane.life.is_over:
            durable |= _after_death(lane, case, result)
            if result.starts >= MAX_STARTS:
                result.problems.append(f"still dying at start {result.starts}")
                break
            lane.start()
            result.starts += 1
            continue
        break
    result.reached = lane.control.fired
    if not finished and not result.problems:
        report = newest(lane)
        state = report.deployment.state.value if report and report.deployment else "nothing"
        result.problems.append(f"did not come to an end within {PATIENCE_S} s; reported last: {state}\n{lane.last_words()}")
    if finished and scenario.stops and not result.reached:
        # The point may lie in the clean stop.
        durable |= _stop_and_start_again(lane, case, result)
    lane.control.disarm()
    if finished and result.starts == 1 and lane.control.fired and case.mode is not Mode.KILL_SELF:
        # The server saw the end of the scenario an instant before the agent came to its point: dead, and to be started again.
        assert lane.life is not None
        lane.life.wait()
        result.reached = True
    if finished and lane.life is not None and lane.life.is_over:
        durable |= _after_death(lane, case, result)
        told = len(lane.heard.reports)
        lane.start()
        result.starts += 1
        lane.wait_for_report(after=told)  # of this life
    if not result.problems:
        problems, result.serves = judge(lane, scenario, durable)
        result.problems += problems
    lane.stop(signal.SIGKILL)
    result.seconds = time.monotonic() - begun
    return result


def cases_of(name: str, points: Sequence[Point], *, modes: Sequence[tuple[Mode, Damage]]) -> list[Case]:
    """Every point in every way; a call that writes nothing cannot be torn, and only children are killed alone."""
    cases = []
    for mode, damage in modes:
        for point in points:
            if mode is Mode.KILL_TORN and point.call not in ("write", "pwrite", "sendfile"):
                continue
            if mode is Mode.KILL_SELF and point.role in ROOTS:
                continue
            cases.append(Case(name, point, mode, damage))
    return cases


def spread(cases: Sequence[T], count: int, seed: int) -> list[T]:
    """`count` of these cases or points, evenly spread, beginning at a place that the seed says."""
    if count >= len(cases):
        return list(cases)
    step = len(cases) / count
    offset = random.Random(seed).random() * step
    return [cases[int(offset + i * step) % len(cases)] for i in range(count)]


def _live_through(lane: Lane, scenario: Scenario) -> bool:
    """Until the scenario has come to its end (True), or the agent is dead, or patience is."""

    def is_settled() -> bool:
        assert lane.life is not None
        if lane.life.is_over:
            return True
        scenario.drive(lane)
        return scenario.is_done(lane)

    wait_for(is_settled, timeout_s=PATIENCE_S)
    return lane.life is not None and not lane.life.is_over and scenario.is_done(lane)


def _after_death(lane: Lane, case: Case, result: Result) -> set[tuple[str, int]]:
    """The dead agent's disk: what is on it counts, and what was not synced may be lost."""
    lane.fleet.wait_offline(lane.name)
    if not lane.control.fired:
        result.problems.append(f"the agent ended by itself with {lane.life.code if lane.life else '?'}: {lane.last_words()}")
    lane.control.disarm()
    result.damaged += damage_unsynced(lane.state_dir, lane.control.calls(), case.damage, before=lane.template)
    return lane.durable_readings()


def _stop_and_start_again(lane: Lane, case: Case, result: Result) -> set[tuple[str, int]]:
    assert lane.life is not None
    lane.life.end(signal.SIGTERM)
    durable = _after_death(lane, case, result) if lane.control.fired else set()
    result.reached = lane.control.fired
    lane.start()
    result.starts += 1
    return durable


def judge(lane: Lane, scenario: Scenario, durable: set[tuple[str, int]], *, spared: bool = True) -> tuple[list[str], int]:
    """What is wrong now that the scenario has come to its end, and which version serves. Ends the agent.

    Without `spared` the disk has refused writes: what could not be removed then goes with the next deployment, and an order whose
    verification could not be noted is verified again at the next connection.
    """
    problems, serves = [], 0
    if not wait_for(lambda: _is_serving(lane), timeout_s=PATIENCE_S):
        problems.append("it does not serve")
    else:
        serves = lane.ask(tame_images(1))
        if serves != scenario.serves:
            problems.append(f"version {serves} serves, expected {scenario.serves}")
    if lane.stop() != 0:
        problems.append(f"a clean stop ended otherwise: {lane.last_words()}")
    problems += _start_once_more(lane, may_change=() if spared else _VERIFIED_AGAIN)
    lost = durable - set(lane.heard.readings)
    if lost:
        problems.append(f"{len(lost)} readings that were on disk never came: {sorted(lost)}")
    problems += list(lane.heard.conflicts) + scenario.problems(lane)
    return problems + (_leftovers(lane.state_dir) if spared else []), serves


def _is_serving(lane: Lane) -> bool:
    report = newest(lane)
    return report is not None and report.serving


def _start_once_more(lane: Lane, *, may_change: Sequence[str] = ()) -> list[str]:
    """It changes nothing; and what the clean stop wrote is sent."""
    before, told = lane.snapshot(), len(lane.heard.reports)
    lane.start()
    problems = []
    if not wait_for(lambda: len(lane.heard.reports) > told and lane.heard.reports[-1].serving, timeout_s=PATIENCE_S):
        problems.append(f"the next start does not serve: {lane.last_words()}")
    if not wait_for(lambda: not lane.durable_readings(), timeout_s=PATIENCE_S):
        problems.append(f"readings do not drain: {sorted(lane.durable_readings())}")
    lane.stop()
    after = lane.snapshot()
    changed = {key for key in {*before, *after} if before.get(key) != after.get(key)} - set(may_change)
    return problems + [f"the next start changes {key}" for key in sorted(changed)]


def _leftovers(state_dir: Path) -> list[str]:
    found = [*(state_dir / "slots").glob("*.tmp"), *(state_dir / "slots").glob("*.old"), *(state_dir / "slots").glob(".*.tmp")]
    found += [*(state_dir / "fetch").glob("*"), *state_dir.glob("*.unreadable-*"), *state_dir.glob("identity.tmp")]
    return [f"left behind: {path.relative_to(state_dir)}" for path in found]
