"""The whole kill harness: SIGKILL at every boundary of the disk, in every scenario, and the same with torn writes.

    .venv/bin/python scripts/kill_harness.py                       # every point; about half an hour on two cores
    .venv/bin/python scripts/kill_harness.py --share 0.1 --seed 3  # a tenth of them
    .venv/bin/python scripts/kill_harness.py --scenario deployment --fault kill_tree

Real agents with real children against a real broker; needs a C compiler. Prints a table, with --json one JSON document; exits with 1
if any device did not come to rest by itself.
"""

import argparse
import json
import logging
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.faults.shim import Fault
from tests.faults.sweep import ALL, Result, open_tools, sweep


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--share", type=float, default=1.0, help="share of the points, 0..1")
    parser.add_argument("--seed", type=int, default=0, help="which share")
    parser.add_argument("--workers", type=int, default=2, help="devices at a time")
    parser.add_argument("--scenario", action="append", help="only this one; may be given again")
    parser.add_argument("--fault", action="append", choices=["kill_tree", "kill_self", "torn"], help="only this one; may be given again")
    parser.add_argument("--json", action="store_true", help="one JSON document instead of the table")
    options = parser.parse_args()
    logging.getLogger("covey_agent").setLevel(logging.CRITICAL)  # what a struck program left behind is looked at, not told
    chosen = [scenario for scenario in ALL if not options.scenario or scenario.name in options.scenario]
    faults = [Fault[name.upper()] for name in options.fault or ["kill_tree", "kill_self", "torn"]]
    begun, results = time.monotonic(), list[Result]()
    with tempfile.TemporaryDirectory(prefix="covey-kill-") as folder, open_tools(Path(folder)) as tools:
        for scenario in chosen:
            for fault in faults:
                results.append(
                    sweep(tools, scenario, fault, share=options.share, workers=options.workers, seed=options.seed, tell=_progress)
                )
                _show(results[-1])
    total, failed = sum(result.struck for result in results), sum(len(result.failures) for result in results)
    sys.stderr.write(f"\n{total} points struck, {failed} failed, {time.monotonic() - begun:.0f} s\n")
    if options.json:
        print(json.dumps([_as_json(result) for result in results], indent=2))
    return 1 if failed else 0


def _progress(text: str) -> None:
    sys.stderr.write(f"  {text}\n")


def _show(result: Result) -> None:
    boots = " ".join(f"{boots}:{count}" for boots, count in sorted(result.boots.items()))
    calls = " ".join(f"{call}:{count}" for call, count in result.calls.most_common())
    line = f"{result.scenario:26} {result.fault.name.lower():10} points {result.boundaries:4} struck {result.struck:4} "
    print(f"{line} failed {len(result.failures)}  not reached {result.not_reached}  boots {boots}  [{calls}]", file=sys.stderr)
    for failure in result.failures:
        print(f"    FAILED {failure}", file=sys.stderr)


def _as_json(result: Result) -> dict[str, object]:
    return {
        "scenario": result.scenario,
        "fault": result.fault.name.lower(),
        "boundaries": result.boundaries,
        "struck": result.struck,
        "not_reached": result.not_reached,
        "boots": {str(boots): count for boots, count in sorted(result.boots.items())},
        "calls": dict(result.calls),
        "failures": result.failures,
    }


if __name__ == "__main__":
    raise SystemExit(main())
