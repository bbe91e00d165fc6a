"""Memory and CPU of an agent, measured as Greengrass lite measures itself: PSS after a warm-up, over a window, several runs.

    .venv/bin/python benchmarks/agent_footprint.py --runs 3 --warm-up 20 --window 20

Starts a real server in a temporary folder, enrols one agent, and measures the agent's process once it is connected by mutual TLS with
no model loaded. Beside it, in the same call, a bare Python process that holds the same MQTT connection with paho and does nothing else:
the ratio says what Covey adds. Prints a table and, with --json, one JSON document.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from covey_server.demo.actors import Troupe, program
from covey_server.demo.bring_up import bring_up
from covey_server.demo.narrator import Narrator
from covey_server.demo.stage import DemoOptions, Stage

_PEER = """
import json, pathlib, ssl, sys, time
import paho.mqtt.client as mqtt
identity, port = pathlib.Path(sys.argv[1]), int(sys.argv[2])
client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id=sys.argv[3] + ":peer", protocol=mqtt.MQTTv311)
context = ssl.create_default_context(cafile=str(identity / "ca.crt"))
context.load_cert_chain(identity / "device.crt", identity / "device.key")
client.tls_set_context(context)
client.connect("127.0.0.1", port)
client.loop_forever()
"""


@dataclass(frozen=True, slots=True)
class Sample:
    """One process over one window."""

    pss_kb: int
    private_kb: int
    cpu_percent: float


def pss_of(pid: int) -> tuple[int, int]:
    """(PSS, private) of one process in kB."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/smaps_rollup").read_text("ascii").splitlines()[1:])
    private = sum(int(fields[name].split()[0]) for name in ("Private_Clean", "Private_Dirty"))
    return int(fields["Pss"].split()[0]), private


def cpu_seconds(pid: int) -> float:
    """User and system time of one process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text("ascii").rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(pids: list[int], *, warm_up_s: float, window_s: float) -> list[Sample]:
    """Each process over the same window, side by side."""
    time.sleep(warm_up_s)
    before = [cpu_seconds(pid) for pid in pids]
    time.sleep(window_s)
    after = [cpu_seconds(pid) for pid in pids]
    return [Sample(*pss_of(pid), cpu_percent=100 * (end - start) / window_s) for pid, start, end in zip(pids, before, after, strict=True)]


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--warm-up", type=float, default=20.0, help="seconds")
    parser.add_argument("--window", type=float, default=20.0, help="seconds")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    agents: list[Sample] = []
    peers: list[Sample] = []
    with tempfile.TemporaryDirectory(prefix="covey-bench-") as folder:
        options = DemoOptions(devices=1, partners=1, rounds=1, seed=1, work_dir=Path(folder), stay=False, report=None)
        stage = Stage(options, Path(folder), Narrator(), Troupe(Path(folder) / "logs"))
        try:
            bring_up(stage)
            state_dir = stage.state_dir("device-1")
            token = stage.call().post("/invitations", {"device": "device-1"})["token"]
            stage.troupe.call("enroll", [program("covey-agent"), "enroll", "--token", token, "--state-dir", str(state_dir)], timeout_s=60)
            for _ in range(arguments.runs):
                agent = stage.troupe.start("agent", [program("covey-agent"), "run", "--state-dir", str(state_dir)])
                stage.wait("online", lambda: stage.call().get("/devices/device-1")["presence"] == "online", timeout_s=60)
                argv = [sys.executable, "-c", _PEER, str(state_dir / "identity"), str(stage.broker_port), "device-1"]
                peer = subprocess.Popen(argv)
                both = measure([agent, peer.pid], warm_up_s=arguments.warm_up, window_s=arguments.window)
                agents.append(both[0])
                peers.append(both[1])
                peer.kill()
                peer.wait()
                stage.troupe.stop("agent")
        finally:
            stage.troupe.stop_all()
    _show(agents, peers, as_json=arguments.json)
    return 0


def _show(agents: list[Sample], peers: list[Sample], *, as_json: bool) -> None:
    rows = {"idle agent": agents, "bare Python + paho": peers}
    result = {
        name: {
            "pss_mb": round(statistics.median(s.pss_kb for s in samples) / 1024, 2),
            "pss_mb_min": round(min(s.pss_kb for s in samples) / 1024, 2),
            "pss_mb_max": round(max(s.pss_kb for s in samples) / 1024, 2),
            "private_mb": round(statistics.median(s.private_kb for s in samples) / 1024, 2),
            "cpu_percent_of_a_core": round(statistics.median(s.cpu_percent for s in samples), 3),
        }
        for name, samples in rows.items()
    }
    ratio = round(result["idle agent"]["pss_mb"] / result["bare Python + paho"]["pss_mb"], 2)
    if as_json:
        print(json.dumps({**result, "pss_ratio": ratio}, indent=2))
        return
    for name, figures in result.items():
        print(f"{name:<20} " + "  ".join(f"{key} {value}" for key, value in figures.items()))
    print(f"PSS ratio agent / bare process: {ratio}")


if __name__ == "__main__":
    sys.exit(main())
