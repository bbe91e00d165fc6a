"""Kill the agent at every point at which it changes its state directory, and see what becomes of it.

    python -m scripts.kill_harness                                  # everything: thousands of lives, about an hour of two cores
    python -m scripts.kill_harness --scenario deployment --modes before --sample 40
    python -m scripts.kill_harness --json result.json

Real daemons and children, a real broker, real SIGKILL. The points are recorded, not listed by hand; see docs/agent.md.
"""

import argparse
import json
import shutil
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.faults.bench import MODES, Bench, open_bench, table
from tests.faults.lane import fast_folder
from tests.faults.sweep import Result, spread

NAMES = 3000  # devices of each lane


def main() -> int:
    """Record, kill, print; exit with 1 if anything was wrong."""
    options = _parse()
    folder = Path(tempfile.mkdtemp(prefix="kill-harness-", dir=fast_folder()))
    begun = time.monotonic()
    try:
        with open_bench(folder, lanes=options.parallel, names=NAMES) as bench:
            results = _sweep(bench, options)
            _tell(bench.counts(), results, options, seconds=time.monotonic() - begun)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return 1 if any(result.problems for result in results) else 0


def _tell(points: dict[str, int], results: list[Result], options: argparse.Namespace, *, seconds: float) -> None:
    print("\n" + table(points, results))
    wrong = sum(bool(result.problems) for result in results)
    killed = sum(result.reached for result in results)
    print(f"\n{sum(points.values())} points, {len(results)} cases, {killed} kills, {wrong} wrong, {seconds:.0f} s", flush=True)
    if options.json:
        options.json.write_text(json.dumps(_as_json(points, results, options.seed), indent=1))


def _sweep(bench: Bench, options: argparse.Namespace) -> list[Result]:
    names = options.scenario or bench.names()
    cases = []
    for name in names:
        found = bench.cases(name, [MODES[mode] for mode in options.modes])
        cases += spread(found, options.sample or len(found), options.seed)
    counts = bench.counts()
    print(f"{sum(counts.values())} points in {len(counts)} scenarios, {len(cases)} cases, seed {options.seed}", flush=True)
    done: list[Result] = []

    def tell(result: Result) -> None:
        done.append(result)
        if result.problems or options.verbose:
            text = f"{result.case} {result.seconds:.1f} s {result.damaged or ''} {result.problems or 'ok'}"
            print(f"[{len(done)}/{len(cases)}] {text}", flush=True)
        elif len(done) % 100 == 0:
            print(f"[{len(done)}/{len(cases)}]", flush=True)

    return bench.sweep(cases, tell=tell)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenario", action="append", help="only this one (may be given again)")
    parser.add_argument("--modes", nargs="+", choices=list(MODES), default=list(MODES), help="default: all")
    parser.add_argument("--sample", type=int, default=0, help="at most so many cases of each scenario, evenly spread; 0: all")
    parser.add_argument("--seed", type=int, default=int(time.time()) // 86400, help="where the sample begins; default: the day")
    parser.add_argument("--parallel", type=int, default=2, help="devices at a time")
    parser.add_argument("--json", type=Path, help="write every result to this file")
    parser.add_argument("--verbose", action="store_true", help="print every case")
    return parser.parse_args()


def _as_json(points: dict[str, int], results: list[Result], seed: int) -> dict[str, Any]:
    told = [
        asdict(result)
        | {"case": str(result.case), "scenario": result.case.scenario, "mode": result.case.mode.name, "damage": result.case.damage.value}
        for result in results
    ]
    return {"seed": seed, "points": points, "results": told}


if __name__ == "__main__":
    sys.exit(main())
