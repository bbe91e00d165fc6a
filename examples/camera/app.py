"""A camera-style application: takes one picture after the other and asks the agent on its own device what it shows.

    python examples/camera/app.py --socket /var/lib/covey-agent/run/infer.sock --images pictures.npz --rate 5 --log answers.jsonl
    python examples/camera/app.py --socket /var/lib/covey-agent/run/infer.sock --synthetic --batch 8

It needs nothing but numpy and the agent's client: no model, no runtime, no network. While the agent changes models it simply goes on
asking; when the new model takes pictures of another shape, it makes them fit. Where it is known what a picture shows, that is sent
back as feedback, and the server gets the counts. Each answer is a JSON line in `--log`. See README.md beside this file.
"""

import argparse
import contextlib
import json
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
from frames import Frame, fit, from_folder, from_npz, synthetic

from covey_agent.client import BusyError, Client, RequestError
from covey_agent.errors import CoveyAgentError

Answer = dict[str, object]


def main() -> int:
    """Ask until SIGTERM, or until `--count` pictures were asked about. Exit code 1 if a request failed."""
    arguments = _arguments()
    try:
        frames = _frames(arguments)
    except (OSError, ValueError, LookupError) as exc:
        sys.exit(f"cannot read pictures: {exc}")
    stopped: list[int] = []

    def on_signal(number: int, _frame: FrameType | None) -> None:
        stopped.append(number)

    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, on_signal)
    seen: Counter[str] = Counter()
    with arguments.log.open("a", encoding="utf-8") as log, Client(arguments.socket, timeout_s=arguments.timeout) as client:
        camera = Camera(client)
        asked = 0
        while not stopped and asked != arguments.count:
            size = arguments.batch if arguments.count < 0 else min(arguments.batch, arguments.count - asked)
            started = time.perf_counter()
            for answer in camera.look(list(islice(frames, size))):
                seen["failed" if "error" in answer else f"answered by version {answer['version']}"] += 1
                log.write(json.dumps(answer) + "\n")
            log.flush()
            asked += size
            time.sleep(max(0.0, size / arguments.rate - (time.perf_counter() - started)))
    sys.stderr.write(", ".join(f"{count} {what}" for what, count in sorted(seen.items())) + "\n")
    return 1 if seen["failed"] else 0


class Camera:
    """Asks about pictures, and learns from the answers what the model takes."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._shape: tuple[int, ...] | None = None  # of one sample; unknown until the model was asked

    def look(self, frames: list[Frame]) -> list[Answer]:
        """An answer for each."""
        started = time.perf_counter()
        try:
            answers = self._ask(frames)
        except (CoveyAgentError, ValueError) as exc:  # no model yet, the agent is down, or these pictures fit no model
            answers = [{"error": str(exc)} for _ in frames]
        spent = {"ms": round((time.perf_counter() - started) * 1000, 3), "at": time.time()}
        return [answer | spent for answer in answers]

    def _ask(self, frames: list[Frame]) -> list[Answer]:
        result = self._infer(frames)
        labels, confidences = _per_sample(result.label, result.confidence, len(frames))
        truths = [frame.truth for frame in frames]
        known = [truth for truth in truths if truth is not None]
        if len(known) == len(frames):
            with contextlib.suppress(CoveyAgentError):  # another model serves by now and does not know the answer: nothing is lost
                self._client.feedback(known if len(known) > 1 else known[0], id=result.id)
        return [
            {"label": label, "truth": truth, "confidence": confidence, "version": result.version, "slot": result.slot}
            for label, confidence, truth in zip(labels, confidences, truths, strict=True)
        ]

    def _infer(self, frames: list[Frame]) -> Any:
        if self._shape is None:
            self._shape = tuple(self._client.model()["input"]["shape"][1:])
        try:
            return self._client.infer(self._inputs(frames, self._shape))
        except BusyError as exc:  # others ask a lot: these pictures may wait once, the next ones are fresher
            time.sleep(exc.retry_after_s)
        except RequestError as exc:  # another model serves, and takes another shape
            expected = exc.problem.get("expected", {}).get("shape")
            if expected is None or tuple(expected[1:]) == self._shape:
                raise
            self._shape = tuple(expected[1:])
        return self._client.infer(self._inputs(frames, self._shape))

    def _inputs(self, frames: list[Frame], shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
        fitted = [fit(frame.picture, shape) for frame in frames]
        return np.stack(fitted) if len(fitted) > 1 else fitted[0]


def _per_sample(label: Any, confidence: Any, count: int) -> tuple[list[Any], list[Any]]:
    if count == 1:
        return [label], [confidence]
    return label or [None] * count, confidence or [None] * count  # a model without labels has none


def _frames(arguments: argparse.Namespace) -> Iterator[Frame]:
    if arguments.synthetic:
        return synthetic()
    return from_npz(arguments.images) if arguments.images else from_folder(arguments.folder)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--socket", required=True, help="the agent's Unix socket (run/infer.sock of its state folder)")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--images", type=Path, help=".npz with x and, if known, y")
    source.add_argument("--folder", type=Path, help="of .npy, .pgm or .ppm pictures; in subfolders named by label, if known")
    source.add_argument("--synthetic", action="store_true", help="a camera that needs no camera")
    parser.add_argument("--rate", type=float, default=5.0, help="pictures a second")
    parser.add_argument("--batch", type=int, default=1, help="pictures in one request")
    parser.add_argument("--timeout", type=float, default=10.0, help="how long to wait for an answer, seconds")
    parser.add_argument("--count", type=int, default=-1, help="how many pictures; -1: until stopped")
    parser.add_argument("--log", type=Path, default=Path("answers.jsonl"), help="where answers go, one JSON object a line")
    arguments = parser.parse_args()
    if arguments.batch < 1 or arguments.rate <= 0:
        parser.error("--batch must be at least 1, --rate above 0")
    return arguments


if __name__ == "__main__":
    sys.exit(main())
