"""What a delta saves: bytes over the air between int8 releases of one federated model, one round apart.

    .venv/bin/python benchmarks/delta_size.py --rounds 12 --pairs 3

Trains two models on real MNIST digits in federated rounds (four uneven shares, averaged with equal weights): the digits example, whose last
layer learns, and a small CNN, all of whose weights learn. After each of the last rounds the model is quantized with the project's own
pipeline, and between each two in a row the delta is made as the server makes it, applied as a device applies it, and compared. The peers
in the same call: the whole artifact, and the artifact packed by zlib, as systems without deltas send it. Prints a table and, with --json,
one JSON document; exits with 1 if a delta does not make its artifact.
"""

import argparse
import importlib
import io
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from covey_agent.workers.bspatch import apply_patch

EXAMPLE = Path(__file__).parents[1] / "examples" / "digits"
PARTICIPANTS = ["a", "b", "c", "d"]
VARIANTS = ("onnx-int8", "tflite-int8")


class SmallCnn(nn.Module):
    """Convolutions and a dense layer: 105 000 weights, all of them trained."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 16, 3, padding=1)
        self.second = nn.Conv2d(16, 32, 3, padding=1)
        self.dense = nn.Linear(32 * 7 * 7, 64)
        self.classify = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Logits float32[n, 10] of images float32[n, 1, 28, 28]."""
        x = functional.max_pool2d(functional.relu(self.first(images)), 2)
        x = functional.max_pool2d(functional.relu(self.second(x)), 2)
        logits: Tensor = self.classify(functional.relu(self.dense(torch.flatten(x, 1))))
        return logits


def build_cnn() -> nn.Module:
    """For the quantizer, which builds the model itself."""
    return SmallCnn()


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=12, help="rounds before the last releases")
    parser.add_argument("--pairs", type=int, default=3, help="pairs of releases, each one round apart")
    parser.add_argument("--json", action="store_true", help="one JSON document instead of the table")
    options = parser.parse_args()
    sys.path.insert(0, str(EXAMPLE))
    shares, task = importlib.import_module("shares"), importlib.import_module("task")
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="covey-delta-") as folder:
        data = shares.split(Path(folder) / "data", participants=PARTICIPANTS, seed=1)
        models: list[tuple[str, str, Callable[[], nn.Module], float]] = [
            ("digits example", f"{EXAMPLE / 'task.py'}:build_model", task.build_model, 0.5),
            ("small CNN", f"{__file__}:build_cnn", build_cnn, 0.05),
        ]
        for name, source, build, learning_rate in models:
            work = Path(folder) / name.replace(" ", "-")
            work.mkdir()
            releases = make_releases(work, source, build(), data, task, options=options, learning_rate=learning_rate)
            for variant in VARIANTS:
                rows.append({"model": name, "variant": variant} | compare([release / variant_file(variant) for release in releases]))
                if not options.json:
                    show(rows[-1])
    if options.json:
        print(json.dumps(rows, indent=2))
    return 0 if all(row["right"] for row in rows) else 1


def make_releases(
    work: Path, source: str, model: nn.Module, data: Any, task: Any, *, options: argparse.Namespace, learning_rate: float
) -> list[Path]:
    """Train, and quantize after each of the last rounds; returns the folders of the quantized variants."""
    torch.manual_seed(1)
    parts = [task.load_data(str(path)) for path in data.participants.values()]
    state = {key: value.clone() for key, value in model.state_dict().items()}
    releases = []
    for number in range(options.rounds + options.pairs + 1):
        states = []
        for index, (x, y) in enumerate(parts):
            model.load_state_dict(state)
            task.train(model, x, y, steps=10, sample_rate=0.1, learning_rate=learning_rate, seed=1000 * number + index)
            states.append({key: value.clone() for key, value in model.state_dict().items()})
        state = {key: torch.stack([each[key] for each in states]).mean(0) for key in state}
        if number >= options.rounds:
            weights, out = work / f"{number}.safetensors", work / f"release-{number}"
            save_file(state, weights)
            command = [sys.executable, "-m", "covey_quantize.cli", source, "--weights", str(weights), "--out", str(out)]
            command += ["--calibration", str(data.calibration), "--held-out", str(data.held_out), "--variants", ",".join(VARIANTS)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(f"the quantizer failed: {done.stderr[-2000:]}")
            releases.append(out)
    return releases


def variant_file(variant: str) -> str:
    """The file that the quantizer writes."""
    return f"{variant}.{'onnx' if variant.startswith('onnx') else 'tflite'}"


def compare(files: list[Path]) -> dict[str, Any]:
    """Medians over the pairs of files in a row."""
    whole, packed, delta, seconds, right = [], [], [], [], True
    for old, new in itertools.pairwise(files):
        content = new.read_bytes()
        patch = new.with_suffix(".patch")
        subprocess.run([sys.executable, "-m", "covey_server.releases.delta_child", str(old), str(new), str(patch)], check=True)
        result, begun = io.BytesIO(), time.perf_counter()
        apply_patch(old, patch, result, length=len(content))
        seconds.append(time.perf_counter() - begun)
        right = right and result.getvalue() == content
        whole.append(len(content))
        packed.append(len(zlib.compress(content, 9)))
        delta.append(patch.stat().st_size)
    changed = [
        float(np.mean(np.frombuffer(a.read_bytes(), "u1") != np.frombuffer(b.read_bytes(), "u1")))
        for a, b in itertools.pairwise(files)
        if a.stat().st_size == b.stat().st_size
    ]
    return {
        "whole_bytes": statistics.median(whole),
        "packed_bytes": statistics.median(packed),
        "delta_bytes": statistics.median(delta),
        "whole_to_delta": round(statistics.median(w / d for w, d in zip(whole, delta, strict=True)), 1),
        "changed_share": round(statistics.median(changed), 3) if changed else None,
        "apply_ms": round(statistics.median(seconds) * 1000, 1),
        "right": right,
    }


def show(row: dict[str, Any]) -> None:
    """One line of the table."""
    sizes = "  ".join(f"{name} {row[f'{name}_bytes']:8,.0f}" for name in ("whole", "packed", "delta"))
    told = f"{row['whole_to_delta']:5.1f} x smaller  bytes changed {row['changed_share']}  applied in {row['apply_ms']} ms"
    print(f"{row['model']:15} {row['variant']:12} {sizes}  {told}", flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
