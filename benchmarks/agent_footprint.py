"""Memory and CPU of an agent, measured as Greengrass lite measures itself: PSS after a warm-up, over a window, several runs, their spread.

    .venv/bin/python benchmarks/agent_footprint.py --runs 3 --warm-up 20 --window 20

In each run, side by side and over the same window:

| subject | what it is |
|---|---|
| idle agent | the real agent, connected to the real broker by mutual TLS, no model loaded |
| agent serving ONNX, TFLite | the agent and its worker with a small model (31 kB), asked ten times a second; all processes |
| bare Python + paho | a process that holds the same MQTT connection and does nothing else: what Python itself costs |
| Flower SuperNode | stock `flower-supernode` with its children, connected to a stock SuperLink; the SuperLink is not counted |

PSS shares what several Python processes have in common, so `alone` is what it would be without others on the machine: its private pages and
all of its shared ones. Goals: idle at most 30 MB alone and 0.5 % of a core, serving at most 75 MB. Prints a table, or JSON with --json.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.fakes.agent.daemon import Daemon, descendants, make_identity
from tests.fakes.agent.fleet import FleetServer
from tests.fakes.nats_broker import free_port, running_broker, wait_until
from tests.fakes.poison import tame_images
from tests.fakes.usage import alone_kb, cpu_s

from covey_agent.client import Client
from covey_contract.messages import DeploymentState
from covey_contract.release import Runtime

_SHIPPED = {"READINGS_SYSTEM_INTERVAL_S": 30, "READINGS_SEND_INTERVAL_S": 2, "READINGS_ACK_TIMEOUT_S": 20, "READINGS_INFER_INTERVAL_S": 5}
_PEER = """
import pathlib, ssl, sys
import paho.mqtt.client as mqtt
identity, port = pathlib.Path(sys.argv[1]), int(sys.argv[2])
client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id="peer", protocol=mqtt.MQTTv311)
context = ssl.create_default_context(cafile=str(identity / "ca.crt"))
context.load_cert_chain(identity / "device.crt", identity / "device.key")
client.tls_set_context(context)
client.connect("localhost", port)
client.loop_forever()
"""


@dataclass(frozen=True, slots=True)
class Sample:
    """One subject, all of its processes, over one window."""

    pss_kb: int
    alone_kb: int
    cpu_percent: float
    processes: int


@dataclass(frozen=True, slots=True)
class Subject:
    """Something to measure, by the process at its root."""

    name: str
    pid: int

    def pids(self) -> list[int]:
        """It and everything below it."""
        return descendants(self.pid)


def memory_kb(pid: int) -> tuple[int, int]:
    """(PSS, RSS) of one process; RSS is what it would have if nobody shared anything with it."""
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/smaps_rollup").read_text("ascii").splitlines()[1:])
    return int(lines["Pss"].split()[0]), int(lines["Rss"].split()[0])


def measure(subjects: list[Subject], *, warm_up_s: float, window_s: float) -> dict[str, Sample]:
    """Every subject over the same window."""
    time.sleep(warm_up_s)
    before = {subject.name: {pid: cpu_s(pid) for pid in subject.pids()} for subject in subjects}
    time.sleep(window_s)
    samples = {}
    for subject in subjects:
        pids = subject.pids()
        used = sum(cpu_s(pid) - before[subject.name].get(pid, 0.0) for pid in pids)
        pss = sum(memory_kb(pid)[0] for pid in pids)
        samples[subject.name] = Sample(pss, alone_kb(pids), 100 * used / window_s, len(pids))
    return samples


@contextmanager
def connected_agent(folder: Path, runtime: Runtime | None) -> Iterator[Subject]:
    """An agent with a server of its own; with a runtime, it serves a model of it, which is asked ten times a second."""
    folder.mkdir()
    with running_broker(folder / "server", devices=["cam-1"]) as broker, FleetServer(broker, "cam-1") as server:
        make_identity(folder / "state", broker, "cam-1")
        server.repository.enrol(folder / "state")
        daemon = Daemon(folder / "state", {f"COVEY_AGENT_{name}": str(value) for name, value in _SHIPPED.items()})
        daemon.start()
        stop = threading.Event()
        try:
            wait_until(
                lambda: daemon.status()["connected"] and not daemon.children(), what="a connection, and the probe's end", timeout_s=90
            )
            if runtime is not None:
                server.wait_for(server.order(server.publish_release(1, runtime=runtime)), DeploymentState.COMMITTED)
                socket = str(daemon.state_dir / "run" / "infer.sock")
                threading.Thread(target=ask, args=(socket, stop), daemon=True).start()
            yield Subject(f"agent serving {runtime.value}" if runtime else "idle agent", daemon.pid)
        finally:
            stop.set()
            daemon.stop()


def ask(socket: str, stop: threading.Event) -> None:
    """An application."""
    image = tame_images(1)[0]
    with Client(socket, timeout_s=30) as client:
        while not stop.wait(0.1):
            client.infer(image)


@contextmanager
def bare_python(folder: Path) -> Iterator[Subject]:
    """The same connection without an agent."""
    folder.mkdir()
    with running_broker(folder / "server", devices=["cam-1"]) as broker:
        make_identity(folder / "state", broker, "cam-1")
        with started([sys.executable, "-c", _PEER, str(folder / "state" / "identity"), str(broker.port)], folder) as pid:
            yield Subject("bare Python + paho", pid)


@contextmanager
def flower_supernode(folder: Path) -> Iterator[Subject]:
    """Stock Flower, without TLS, which only makes it lighter."""
    folder.mkdir()
    fleet, control, runtime, node = (free_port() for _ in range(4))
    link = ["flower-superlink", "--insecure", "--fleet-api-address", f"127.0.0.1:{fleet}", "--control-api-address", f"127.0.0.1:{control}"]
    with started([*tool(link), "--port", str(runtime)], folder):
        time.sleep(8)
        command = tool(["flower-supernode", "--insecure", "--superlink", f"127.0.0.1:{fleet}", "--port", str(node)])
        with started(command, folder) as pid:
            yield Subject("Flower SuperNode", pid)


@contextmanager
def started(command: list[str], folder: Path) -> Iterator[int]:
    """A process and everything that it starts, for the length of a block."""
    environment = os.environ | {"FLWR_HOME": str(folder), "FLWR_TELEMETRY_ENABLED": "0", "FLWR_UPDATE_CHECK": "0"}
    # Flower starts its own commands by name.
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment.get('PATH', '')}"
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
    try:
        yield process.pid
        if process.poll() is not None:
            raise SystemExit(f"{command[0]} ended: {(folder / 'log').read_text()[-500:]}")
    finally:
        for pid in reversed(descendants(process.pid)):
            try:
                os.kill(pid, 9)
            except ProcessLookupError:
                continue
        process.wait()


def tool(command: list[str]) -> list[str]:
    """A command of this environment."""
    return [str(Path(sys.executable).with_name(command[0])), *command[1:]]


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--warm-up", type=float, default=20.0, help="seconds")
    parser.add_argument("--window", type=float, default=20.0, help="seconds")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    samples: dict[str, list[Sample]] = {}
    for _ in range(arguments.runs):
        with tempfile.TemporaryDirectory(prefix="covey-bench-") as name, ExitStack() as stack:
            folder = Path(name)
            subjects = [
                stack.enter_context(connected_agent(folder / "idle", None)),
                stack.enter_context(connected_agent(folder / "onnx", Runtime.ONNXRUNTIME)),
                stack.enter_context(connected_agent(folder / "tflite", Runtime.LITERT)),
                stack.enter_context(bare_python(folder / "bare")),
                stack.enter_context(flower_supernode(folder / "flower")),
            ]
            for subject, sample in measure(subjects, warm_up_s=arguments.warm_up, window_s=arguments.window).items():
                samples.setdefault(subject, []).append(sample)
    _show(samples, as_json=arguments.json)
    return 0


def _show(samples: dict[str, list[Sample]], *, as_json: bool) -> None:
    result = {name: _summary(found) for name, found in samples.items()}
    bare = result["bare Python + paho"]["pss_mb"]
    if as_json:
        ratios = {name: round(figures["pss_mb"] / bare, 2) for name, figures in result.items()}
        print(json.dumps({**result, "pss_ratio_to_bare": ratios}, indent=2))
        return
    print(f"{'subject':<26} {'processes':>9} {'PSS MB':>8} {'min':>7} {'max':>7} {'CV %':>6} {'alone MB':>9} {'CPU %':>7} {'ratio':>6}")
    for name, figures in result.items():
        memory = f"{figures['pss_mb']:>8} {figures['pss_mb_min']:>7} {figures['pss_mb_max']:>7} {figures['cv_percent']:>6}"
        rest = f"{figures['alone_mb']:>9} {figures['cpu_percent']:>7} {figures['pss_mb'] / bare:>6.2f}"
        print(f"{name:<26} {figures['processes']:>9} {memory} {rest}")


def _summary(samples: list[Sample]) -> dict[str, float]:
    pss = [sample.pss_kb / 1024 for sample in samples]
    return {
        "processes": samples[-1].processes,
        "pss_mb": round(statistics.median(pss), 2),
        "pss_mb_min": round(min(pss), 2),
        "pss_mb_max": round(max(pss), 2),
        "cv_percent": round(100 * statistics.pstdev(pss) / statistics.mean(pss), 2),
        "alone_mb": round(statistics.median(sample.alone_kb for sample in samples) / 1024, 2),
        "cpu_percent": round(statistics.median(sample.cpu_percent for sample in samples), 3),
    }


if __name__ == "__main__":
    sys.exit(main())
