"""How long a device is without its old model after evidence against a new one, next to a cold start of the old one.

    .venv/bin/python benchmarks/rollback_time.py --runs 5

Each run is a real `covey-agent run` with nobody to ask, a proven model in one slot and a poison on probation in the other
(examples/poison). An application that asks every 2 ms measures from outside: `back`, from the agent's evidence to the first answer of the
old model, and `gap`, the longest time between two answers. Beside it in the same call, as devices without a warm slot do it: a worker
is started on the old model, without any back-off, until it answers (`cold start`). Prints medians and the worst of all runs.
"""

import argparse
import itertools
import json
import os
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.fakes.agent.on_trial import TrialDevice
from tests.fakes.children import Child, listen_unix
from tests.fakes.poison import INK, Behaviour, tame_images, wild_images

from covey_agent.client import Client, ClientError
from covey_agent.core.jobs import InferJob
from covey_contract.messages import DeploymentState
from covey_contract.release import Runtime

_ASK_S = 0.002
_PATIENCE_S = 60.0


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of evidence and how to bring it about."""

    name: str
    strike: "Callable[[TrialDevice], None]"
    behaviour: Behaviour = Behaviour.CRASH
    runtime: Runtime = Runtime.ONNXRUNTIME
    settings: dict[str, object] = field(default_factory=dict)


def show(count: int) -> "Callable[[TrialDevice], None]":
    """So many images that set the poison off."""

    def strike(device: TrialDevice) -> None:
        for image in wild_images(count):
            try:
                with Client(device.socket, timeout_s=30) as client:
                    client.infer(image)
            except ClientError:
                continue  # how it is answered is not the question

    return strike


def send(number: int) -> "Callable[[TrialDevice], None]":
    """A signal to the new model's worker."""
    return lambda device: os.kill(device.newest_worker(), number)


KINDS = [
    Kind("crash (SIGFPE in ONNX Runtime)", show(1)),
    Kind("crash (SIGSEGV in LiteRT)", show(1), runtime=Runtime.LITERT),
    Kind("illegal instruction", send(signal.SIGILL)),
    Kind("abort", send(signal.SIGABRT)),
    Kind("hang in a request", show(1), Behaviour.HANG, settings={"INFERENCE_HANG_TIMEOUT_S": 1}),
    Kind("silent", send(signal.SIGSTOP), settings={"INFERENCE_SILENCE_TIMEOUT_S": 2}),
    Kind("out of memory", show(1), Behaviour.HOG, settings={"INFERENCE_MEMORY_LIMIT_MB": 512}),
    Kind("slow", show(24), Behaviour.SLOW, Runtime.LITERT),
    Kind("NaN", show(200), Behaviour.NAN),
    Kind("constant", show(24), Behaviour.CONSTANT),
]


class Watcher:
    """An application that asks all the time; each answer with its moment and its version."""

    def __init__(self, socket: str) -> None:
        self.answers: list[tuple[float, int]] = []
        self._socket = socket
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """No more questions."""
        self._stop.set()
        self._thread.join(_PATIENCE_S)

    def wait_for(self, version: int, *, since: float) -> float:
        """The moment of the first answer of this version after `since`."""
        deadline = time.monotonic() + _PATIENCE_S
        while time.monotonic() < deadline:
            for at, answered in self.answers:
                if at >= since and answered == version:
                    return at
            time.sleep(0.001)
        raise SystemExit(f"no answer of version {version} within {_PATIENCE_S:g} s")

    def gap_ms(self) -> float:
        """The longest time between two answers."""
        moments = [at for at, _ in self.answers]
        return 1000 * max(after - before for before, after in itertools.pairwise(moments))

    def _run(self) -> None:
        image = tame_images(1)[0]
        with Client(self._socket, timeout_s=_PATIENCE_S) as client:
            while not self._stop.wait(_ASK_S):
                try:
                    answer = client.infer(image)
                except ClientError:
                    continue  # a poison's error is an answer too, but none that counts
                self.answers.append((time.monotonic(), answer.version))


def roll_back(kind: Kind) -> tuple[float, float, str]:
    """One run: (back, gap) in milliseconds, and the reason that the agent gave."""
    with (
        tempfile.TemporaryDirectory(prefix="covey-bench-") as folder,
        TrialDevice.make(Path(folder), kind.behaviour, ink=INK, runtime=kind.runtime, settings=kind.settings) as device,
    ):
        device.start()
        watcher = Watcher(device.socket)
        began = watcher.wait_for(2, since=0.0)
        threading.Thread(target=kind.strike, args=(device,), daemon=True).start()
        back_at = watcher.wait_for(1, since=began)
        machine = device.wait_for(DeploymentState.ROLLED_BACK)
        watcher.stop()
        assert machine.deployment is not None
        assert machine.deployment.rollback_ms is not None
        # The agent's moment of evidence: its own figure ends with the old worker's sign of life, ours with an application's answer.
        changed_at = machine.deployment.changed_at / 1000 - time.time() + time.monotonic()
        evidence_at = changed_at - machine.deployment.rollback_ms / 1000
        return max((back_at - evidence_at) * 1000, 0.0), watcher.gap_ms(), machine.deployment.reason


def start_cold() -> float:
    """The peer: from the start of a worker on the old model to its first answer, milliseconds."""
    with tempfile.TemporaryDirectory(prefix="covey-bench-") as folder:
        device, path = TrialDevice.make(Path(folder)), Path(folder) / "s"
        with listen_unix(path) as sock:
            began = time.monotonic()
            job = InferJob(slot_dir=str(device.state_dir / "slots" / "A"), slot="A", unix_fd=sock.fileno())
            with Child("infer", job, pass_fds=[sock.fileno()]), Client(path, timeout_s=_PATIENCE_S) as client:
                client.infer(tame_images(1)[0])
                return (time.monotonic() - began) * 1000


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--only", default="", help="kinds whose name holds this")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = []
    cold: list[float] = []
    for kind in [kind for kind in KINDS if options.only in kind.name]:
        runs = [roll_back(kind) for _ in range(options.runs)]
        cold += [start_cold()]
        rows.append(_row(kind.name, [back for back, _, _ in runs], [gap for _, gap, _ in runs], reason=runs[-1][2]))
    rows.append(_row("cold start (peer)", cold, cold, reason="a worker without a warm one beside it"))
    if options.json:
        sys.stdout.write(json.dumps({"runs": options.runs, "rows": [asdict(row) for row in rows]}, indent=2) + "\n")
        return 0
    sys.stdout.write(f"{'evidence':32} {'back ms':>9} {'worst':>7} {'gap ms':>9} {'worst':>7}  reason\n")
    for row in rows:
        times = f"{row.back_ms:9.0f} {row.back_worst_ms:7.0f} {row.gap_ms:9.0f} {row.gap_worst_ms:7.0f}"
        sys.stdout.write(f"{row.kind:32} {times}  {row.reason}\n")
    return 0


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table."""

    kind: str
    back_ms: float
    back_worst_ms: float
    gap_ms: float
    gap_worst_ms: float
    reason: str


def _row(kind: str, backs: list[float], gaps: list[float], *, reason: str) -> Row:
    return Row(kind, statistics.median(backs), max(backs), statistics.median(gaps), max(gaps), reason)


if __name__ == "__main__":
    raise SystemExit(main())
