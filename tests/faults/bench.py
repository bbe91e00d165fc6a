"""All scenarios and commands on one broker: list their points, run their cases on several devices at a time, tell the result."""

import queue
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.fakes.agent.edge import EnrolmentEdge
from tests.faults.commands import Command, all_commands, record_command, run_command_case
from tests.faults.damage import Damage
from tests.faults.lane import Lane, open_lanes
from tests.faults.scenarios import SCENARIOS, Scenario
from tests.faults.shim import Mode, Point
from tests.faults.sweep import Case, Result, cases_of, record, run_case

MODES = {
    "before": (Mode.KILL_BEFORE, Damage.NONE),
    "after": (Mode.KILL_AFTER, Damage.NONE),
    "child": (Mode.KILL_SELF, Damage.NONE),
    "torn": (Mode.KILL_TORN, Damage.NONE),
    "truncated": (Mode.KILL_AFTER, Damage.TRUNCATED),
    "garbled": (Mode.KILL_AFTER, Damage.GARBLED),
}


class Bench:
    """Devices, and what can be done to them."""

    def __init__(self, lanes: list[Lane], commands: Sequence[Command]) -> None:
        self.lanes = lanes
        everything: list[Scenario | Command] = [*SCENARIOS, *commands]
        self._all = {each.name: each for each in everything}
        self._points: dict[str, list[Point]] = {}

    def names(self) -> list[str]:
        """Every scenario and command."""
        return list(self._all)

    def points(self, name: str) -> list[Point]:
        """Every point of one, recorded once."""
        if name not in self._points:
            each, lane = self._all[name], self.lanes[0]
            self._points[name] = record(lane, each) if isinstance(each, Scenario) else record_command(lane, each)
        return self._points[name]

    def counts(self) -> dict[str, int]:
        """How many points each has that was recorded."""
        return {name: len(points) for name, points in self._points.items()}

    def cases(self, name: str, modes: Sequence[tuple[Mode, Damage]]) -> list[Case]:
        """Every case of one."""
        return cases_of(name, self.points(name), modes=modes)

    def sweep(self, cases: Sequence[Case], *, tell: Callable[[Result], None] = lambda _: None) -> list[Result]:
        """All cases, one at a time on each device."""
        waiting: queue.SimpleQueue[Case] = queue.SimpleQueue()
        for case in cases:
            waiting.put(case)
        results: list[Result] = []
        lock = threading.Lock()

        def work(lane: Lane) -> None:
            while True:
                try:
                    case = waiting.get_nowait()
                except queue.Empty:
                    return
                result = self._run(lane, case)
                with lock:
                    results.append(result)
                    tell(result)

        threads = [threading.Thread(target=work, args=(lane,)) for lane in self.lanes]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return results

    def _run(self, lane: Lane, case: Case) -> Result:
        each = self._all[case.scenario]
        try:
            return run_case(lane, each, case) if isinstance(each, Scenario) else run_command_case(lane, each, case)
        except Exception as exc:  # noqa: BLE001 - one case that the harness itself cannot judge must not end the sweep, and counts as wrong
            if lane.life is not None:
                lane.life.end(signal.SIGKILL)
                lane.life = None
            return Result(case, problems=[f"it cannot be judged: {exc!r}"])


@contextmanager
def open_bench(folder: Path, *, lanes: int, names: int = 150) -> Iterator[Bench]:
    """Everything that is needed, in `folder`."""
    (folder / "edge").mkdir(parents=True)
    with open_lanes(lanes, folder=folder, names=names) as opened, EnrolmentEdge(folder / "edge") as edge:
        yield Bench(opened, all_commands(edge.token))


def table(points: dict[str, int], results: Sequence[Result]) -> str:
    """One line a scenario: points, cases, how many were killed and came out right, and after how many starts."""
    lines = [f"{'scenario':<20} {'points':>7} {'cases':>7} {'killed':>7} {'right':>7}  starts: cases"]
    for name, count in points.items():
        own = [result for result in results if result.case.scenario == name]
        starts = Counter(result.starts for result in own if result.reached)
        told = ", ".join(f"{number}: {times}" for number, times in sorted(starts.items()))
        killed, right = sum(result.reached for result in own), sum(not result.problems for result in own)
        lines.append(f"{name:<20} {count:>7} {len(own):>7} {killed:>7} {right:>7}  {told}")
    return "\n".join(lines)
