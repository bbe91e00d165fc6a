"""A camera-style application: takes one picture after the other and asks the agent on its own device what it shows.

    python examples/camera/app.py --socket /var/lib/covey-agent/run/infer.sock --images pictures.npz --rate 5 --log answers.jsonl

It needs nothing but the agent's client: no model, no runtime, no network. While the agent changes models it simply goes on
asking. `--images` is an .npz with `x` float32 [n, ...] and, if known, `y` int64 [n]; with `y`, the right answer is sent back as
feedback, so that the fleet sees live accuracy. Each answer is a JSON line in `--log`.
"""

import argparse
import contextlib
import json
import signal
import sys
import time
from pathlib import Path
from types import FrameType

import numpy as np

from covey_agent.client import Client
from covey_agent.errors import CoveyAgentError


def main() -> int:
    """Ask until SIGTERM, or until `--count` pictures were asked about. Exit code 1 if a request failed."""
    arguments = _arguments()
    try:
        pictures = np.load(arguments.images)
        x, y = pictures["x"], pictures.get("y")
    except (OSError, ValueError, LookupError) as exc:
        sys.exit(f"expected an .npz with x, got {arguments.images}: {exc}")
    stopped: list[int] = []

    def on_signal(number: int, _frame: FrameType | None) -> None:
        stopped.append(number)

    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, on_signal)
    failures = 0
    with arguments.log.open("a", encoding="utf-8") as log:
        client = Client(arguments.socket)
        asked = 0
        while not stopped and asked != arguments.count:
            index = asked % len(x)
            started = time.perf_counter()
            answer = _ask(client, x[index], None if y is None else str(int(y[index])))
            failures += "error" in answer
            answer["ms"] = round((time.perf_counter() - started) * 1000, 3)
            answer["at"] = time.time()
            log.write(json.dumps(answer) + "\n")
            log.flush()
            asked += 1
            time.sleep(max(0.0, 1 / arguments.rate - (time.perf_counter() - started)))
    return 1 if failures else 0


def _ask(client: Client, picture: np.ndarray, truth: str | None) -> dict[str, object]:
    try:
        result = client.infer(picture)
    except CoveyAgentError as exc:  # no model yet, or the agent is down
        return {"error": str(exc)}
    if truth is not None:
        with contextlib.suppress(CoveyAgentError):  # another model serves by now and does not know the answer: nothing is lost
            client.feedback(truth, id=result.id)
    return {"label": result.label, "truth": truth, "confidence": result.confidence, "version": result.version, "slot": result.slot}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--socket", required=True, help="the agent's Unix socket (run/infer.sock of its state folder)")
    parser.add_argument("--images", type=Path, required=True, help=".npz with x and, if known, y")
    parser.add_argument("--rate", type=float, default=5.0, help="pictures a second")
    parser.add_argument("--count", type=int, default=-1, help="how many pictures; -1: until stopped")
    parser.add_argument("--log", type=Path, default=Path("answers.jsonl"), help="where answers go, one JSON object a line")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
