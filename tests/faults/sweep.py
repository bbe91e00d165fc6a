"""A sweep: one recording run of each scenario lists every boundary; then the fault strikes at each of them, or at a sample.

    for result in sweep(folder, faults=[Fault.KILL_TREE], share=1.0, workers=2, seed=1, tell=print): ...

The number of boundaries of a run varies a little (a timer more, a message less), so a boundary past the end of a run is not reached;
such a run is an ordinary one and is counted apart.
"""

import contextlib
import random
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from tests.fakes.agent.edge import EnrolmentEdge
from tests.faults.devices import SCENARIOS, Bench, Scenario, open_bench, strike
from tests.faults.programs import PROGRAMS, Program, strike_program
from tests.faults.shim import Boundary, Fault

MAX_DEVICES = 3000


@dataclass
class Result:
    """What became of one scenario under one fault."""

    scenario: str
    fault: Fault
    boundaries: int
    struck: int = 0
    not_reached: int = 0
    boots: Counter[int] = field(default_factory=Counter)  # starts until it was at rest, the first one included
    calls: Counter[str] = field(default_factory=Counter)  # kinds of call struck
    failures: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Tools:
    """What runs need."""

    bench: Bench
    edge: EnrolmentEdge
    folder: Path
    recorded: dict[str, list[Boundary]] = field(default_factory=dict)  # of each scenario, once


@contextlib.contextmanager
def open_tools(folder: Path, *, devices: int = MAX_DEVICES) -> Iterator[Tools]:
    """A broker, a server, an enrolment edge."""
    with open_bench(folder, devices=devices) as bench:
        edge_folder = folder / "edge"
        edge_folder.mkdir()
        with EnrolmentEdge(edge_folder) as edge:
            yield Tools(bench, edge, folder)


def sweep(
    tools: Tools,
    scenario: Scenario | Program,
    fault: Fault,
    *,
    share: float = 1.0,
    workers: int = 2,
    seed: int = 0,
    tell: Callable[[str], None] = lambda _: None,
) -> Result:
    """Strike at every boundary of a scenario, or at an evenly spread `share` of them that `seed` rotates."""
    if scenario.name not in tools.recorded:
        tools.recorded[scenario.name] = _run(tools, scenario, Fault.NONE, 0)[1]
    recorded = tools.recorded[scenario.name]
    points = _points(recorded, fault, share=share, seed=seed)
    result = Result(scenario.name, fault, len(recorded))
    kinds = {boundary.number: boundary.call for boundary in recorded}

    def one(at: int) -> None:
        try:
            boots, _, struck = _run(tools, scenario, fault, at)
        except AssertionError as exc:
            result.failures.append(str(exc))
            return
        if struck:
            result.struck += 1
            result.calls[kinds[at]] += 1
            result.boots[boots] += 1
        else:
            result.not_reached += 1

    with ThreadPoolExecutor(workers) as pool:
        for done, _ in enumerate(pool.map(one, points), start=1):
            if done % 20 == 0:
                tell(f"{scenario.name}, {fault.name.lower()}: {done} of {len(points)}, {len(result.failures)} failed")
    return result


def _points(recorded: Sequence[Boundary], fault: Fault, *, share: float, seed: int) -> list[int]:
    numbers = [one.number for one in recorded if fault is not Fault.TORN or one.call in {"write", "pwrite", "writev", "sendfile"}]
    if share >= 1.0:
        return numbers
    step = 1.0 / share
    offset = random.Random(seed).random() * step
    return sorted(
        {
            numbers[int(offset + index * step)]
            for index in range(int((len(numbers) - offset) / step) + 1)
            if offset + index * step < len(numbers)
        }
    )


def _run(tools: Tools, scenario: Scenario | Program, fault: Fault, at: int) -> tuple[int, list[Boundary], bool]:
    """(boots, boundaries, whether the fault struck)"""
    if isinstance(scenario, Scenario):
        run = strike(tools.bench, scenario, fault, at)
        return run.boots, run.boundaries, run.struck
    folder = Path(tempfile.mkdtemp(dir=tools.folder))
    program = strike_program(tools.bench.shim, folder, tools.edge, scenario, fault, at)
    return 2, program.boundaries, program.struck


ALL: tuple[Scenario | Program, ...] = (*SCENARIOS, *PROGRAMS)
