"""Memory that a delivery takes on the device and on the server, for artifacts from 100 KB to 500 MB, over both suppliers.

    .venv/bin/python benchmarks/delivery_memory.py --mb 0.1 10 100 500

A real `covey up` and a real agent on this machine. Each artifact is ordered by a rollout, and fetched, verified and staged by the agent's
own deploy child; the bytes are random, so the check that follows refuses them, which is no part of this. Columns, in MB:

| column | what it is |
|---|---|
| trust | the most that the agent and its deploy child had beyond the idle agent while the order was checked (a second or two): every page |
|       | counted once, as if alone on the device |
| fetch | the same while the artifact was fetched, verified and staged |
| agent | the same of the agent's own process, at any time |
| child peak | the most resident memory of the program that fetches, as the kernel counts it (VmHWM); shared libraries included |
| growth | how much more that is than with the smallest artifact: what the size of an artifact costs |
| server | the most that all processes of the server had together (PSS), beyond what they had just before the rollout |

Goal: at most 20 MB above idle while fetching, for any size. Prints a table, or JSON with --json.
"""

import argparse
import contextlib
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.fakes.agent.daemon import descendants
from tests.fakes.usage import alone_kb, peak_rss_kb, pss_kb

from covey_server.demo.actors import Troupe, program
from covey_server.demo.bring_up import bring_up
from covey_server.demo.narrator import Narrator
from covey_server.demo.stage import DemoOptions, Stage

DEVICE = "device-1"
MB = 1_000_000
KB_PER_MB = 1000 * 1000 / 1024
SETTLE_S = 5.0
# MB from which a device takes HTTPS first; none is that large, every one is.
WAYS = {"MQTT": "100000", "HTTPS": "0"}


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mb", type=float, nargs="+", default=[0.1, 10.0, 100.0, 500.0], help="sizes of the artifacts")
    parser.add_argument("--way", action="append", choices=list(WAYS), help="only this supplier; may be given again")
    parser.add_argument("--json", action="store_true", help="one JSON document instead of the table")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for way in options.way or WAYS:
        with tempfile.TemporaryDirectory(prefix="covey-memory-") as folder, running(Path(folder), way) as stage:
            for mb in sorted(options.mb):
                row = {"way": way, "mb": mb} | deliver(stage, way, int(mb * MB))
                first = next((one for one in rows if one["way"] == way), row)
                rows.append(row | {"growth_mb": row["child_peak_mb"] - first["child_peak_mb"]})
                if not options.json:
                    show(rows[-1], is_first=len(rows) == 1)
    if options.json:
        print(json.dumps(rows, indent=2))
    return 0


@contextmanager
def running(folder: Path, way: str) -> Iterator[Stage]:
    """A server that prefers this supplier, with one agent that has no model."""
    values = {"COVEY_FLOWER__ENABLED": "false", "COVEY_DELIVERY__HTTPS_FIRST_MB": WAYS[way], "COVEY_DELIVERY__DELTA_MAX_MB": "0"}
    values["COVEY_API__MAX_BODY_MB"] = "1100"
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    demo = DemoOptions(devices=1, partners=0, rounds=1, seed=1, work_dir=folder, stay=False, report=None)
    with (folder / "narration.log").open("w", encoding="utf-8") as narration:
        stage = Stage(demo, folder, Narrator(Console(file=narration, width=160)), Troupe(folder / "logs"))
        try:
            bring_up(stage)
            enrol(stage)
            yield stage
        finally:
            stage.troupe.stop_all()
            for name, value in before.items():
                os.environ.pop(name)
                if value is not None:
                    os.environ[name] = value


def enrol(stage: Stage) -> None:
    """The real agent, idle."""
    state_dir = str(stage.state_dir(DEVICE))
    token = stage.call().post("/invitations", {"device": DEVICE})["token"]
    agent = program("covey-agent")
    stage.troupe.call("enroll", [agent, "enroll", "--token", token, "--state-dir", state_dir], timeout_s=60)
    stage.troupe.start("agent", [agent, "run", "--verbose", "--state-dir", state_dir])
    stage.wait("the agent", lambda: stage.call().get(f"/devices/{DEVICE}")["presence"] == "online", timeout_s=60)
    log = stage.troupe.log_dir / "agent.log"
    stage.wait("its probe", lambda: "probe ended" in log.read_text(), timeout_s=90)


@dataclass
class Watch:
    """Looks at the processes all the time; everything in KiB."""

    agent: int
    server: int
    deploy: set[int] = field(default_factory=set)
    trust_kb: int = 0
    fetch_kb: int = 0
    agent_kb: int = 0
    child_peak_kb: int = 0
    server_kb: int = 0

    def until(self, stop: threading.Event) -> None:
        """Look until told to stop."""
        while not stop.is_set():
            self.look()

    def look(self) -> None:
        """Once. A process that has just ended counts no more, and one without memory is about to end."""
        with contextlib.suppress(OSError, KeyError):
            self.server_kb = max(self.server_kb, sum(pss_kb(pid) for pid in descendants(self.server)))
        for _ in range(5):  # the deploy child more often: its memory changes faster
            with contextlib.suppress(OSError, KeyError):
                children = [pid for pid in descendants(self.agent)[1:] if is_deploy(pid)]
                self.deploy.update(children)
                self.agent_kb = max(self.agent_kb, alone_kb([self.agent]))
                tree_kb = alone_kb([self.agent, *children])
                if any(is_trusting(pid) for pid in children):
                    self.trust_kb = max(self.trust_kb, tree_kb)
                else:
                    self.fetch_kb = max(self.fetch_kb, tree_kb)
                    self.child_peak_kb = max(self.child_peak_kb, *map(peak_rss_kb, children), 0)
            time.sleep(0.02)


def is_deploy(pid: int) -> bool:
    """Whether this is a deploy child."""
    return any(name in Path(f"/proc/{pid}/cmdline").read_bytes() for name in (b"covey_agent.workers.deploy", b"covey_agent.workers.fill"))


def is_trusting(pid: int) -> bool:
    """Whether a deploy child still is the program that checks the order."""
    return b"covey_agent.workers.deploy" in Path(f"/proc/{pid}/cmdline").read_bytes()


def deliver(stage: Stage, way: str, size: int) -> dict[str, Any]:
    """One artifact, from the order to the staged slot."""
    release, fetched = publish(stage, size), told(stage, way)
    time.sleep(SETTLE_S)
    before = Watch(stage.troupe.pid("agent"), stage.troupe.pid("server"))
    before.look()
    during = Watch(before.agent, before.server)
    stop = threading.Event()
    thread = threading.Thread(target=during.until, args=(stop,))
    thread.start()
    begun = time.monotonic()
    try:
        order: dict[str, Any] = {"release": release, "name": f"{size} bytes", "selector": {"devices": [DEVICE]}, "start": True}
        order |= {"phases": [{"name": "all", "percent": 100}], "deadline_s": 3600}
        stage.call().post("/rollouts", order)
        stage.wait("the staged slot", lambda: told(stage, way) > fetched, timeout_s=900)
    finally:
        wall = time.monotonic() - begun
        stop.set()
        thread.join()
    if len(during.deploy) != 1:
        raise SystemExit(f"expected one deploy child, saw {len(during.deploy)}")
    return {
        "wall_s": wall,
        "idle_mb": before.agent_kb / KB_PER_MB,
        "trust_mb": (during.trust_kb - before.agent_kb) / KB_PER_MB,
        "fetch_mb": (during.fetch_kb - before.agent_kb) / KB_PER_MB,
        "agent_mb": (during.agent_kb - before.agent_kb) / KB_PER_MB,
        "child_peak_mb": during.child_peak_kb / KB_PER_MB,
        "server_mb": (during.server_kb - before.server_kb) / KB_PER_MB,
    }


def told(stage: Stage, way: str) -> int:
    """How many artifacts the device has fetched whole this way, by its own readings."""
    readings = stage.call().get_all(f"/devices/{DEVICE}/readings", kind="deployment")
    values = [reading["values"] for reading in readings]
    return len({value["deployment"] for value in values if str(value.get("fetched", "")) == f"whole, by {way}"})


def publish(stage: Stage, size: int) -> int:
    """A release of one artifact of random bytes; its id."""
    tensor = {"name": "x", "dtype": "float32", "shape": [-1, 2]}
    described: dict[str, Any] = {"name": "onnx-float32", "precision": "float32", "runtime": "onnxruntime", "min_runtime_version": "1.20"}
    described |= {"file": "model.onnx", "golden_tolerance": 0.1, "input": tensor, "output": tensor}
    golden = {"input_shape": [1, 2], "output_shape": [1, 2], "inputs": "AAAAAAAAAAA=", "outputs": "AAAAAAAAAAA="}
    release = {"model": "bench", "labels": ["a", "b"], "golden": golden, "variants": [described]}
    path = stage.work_dir / "model.onnx"
    with path.open("wb") as file:
        for start in range(0, size, MB):
            file.write(os.urandom(min(MB, size - start)))
    with path.open("rb") as file:
        files = [
            ("description", ("release.json", json.dumps(release).encode(), "application/json")),
            ("artifacts", ("model.onnx", file, "application/octet-stream")),
        ]
        made = stage.call().post("/releases/imports", files=files, data={"unmeasured": "true"})
    path.unlink()
    return int(made["id"])


def show(row: dict[str, Any], *, is_first: bool) -> None:
    """One line of the table."""
    names = ("wall_s", "idle_mb", "trust_mb", "fetch_mb", "agent_mb", "child_peak_mb", "growth_mb", "server_mb")
    if is_first:
        print(f"{'way':<6} {'MB':>6} ", *(f"{name.rpartition('_')[0].replace('_', ' '):>11}" for name in names))
    print(f"{row['way']:<6} {row['mb']:>6g} ", *(f"{row[name]:>11.1f}" for name in names), flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
