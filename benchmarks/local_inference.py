"""What the local API adds to a runtime: one picture at a time, and batches, against ONNX Runtime and LiteRT alone in this process.

    .venv/bin/python benchmarks/local_inference.py --runs 5

A real infer worker as the agent starts it, on a Unix socket, asked by the Python client; beside it the same file in the same runtime with
the same options, without anything around it. Both are asked in turns within each run, so that they meet the same load of the machine.
Models: a convolutional network for camera pictures, one like the digits example's, and a linear one (ONNX, and TFLite, which takes one
picture at a time). Prints medians over the runs: p50 and p95 in ms of one picture, what the API adds at p50 (goal: at most 0.4 ms),
samples a second in batches, and the share of the runtime's own (goal: at least 90 %), by one request after the other and by
`Client.stream`. On a machine that does other work, too, the CPU time of both processes says more than the clock: it is printed beside.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
import msgspec
import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.fakes.children import Child, listen_unix
from tests.fakes.poison import Behaviour, poison_file, poison_variant
from tests.fakes.tiny_releases import fill_slot, make_release

from covey_agent.client import Client
from covey_agent.core.jobs import InferJob, InferReady
from covey_agent.workers.runtimes import load_model
from covey_agent.workers.runtimes.engine import VariantModel
from covey_contract.codec import digest_of
from covey_contract.limits import CHUNK_BYTES
from covey_contract.release import Runtime, Variant

Floats = NDArray[np.float32]
LABELS = [str(digit) for digit in range(10)]


@dataclass(frozen=True, slots=True)
class Subject:
    """A model to ask."""

    name: str
    data: bytes
    runtime: Runtime
    shape: tuple[int, int, int] = (1, 28, 28)
    batch: int = 64


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--requests", type=int, default=500, help="of one picture, in each run")
    parser.add_argument("--batches", type=int, default=100, help="in each run")
    parser.add_argument("--only", default="", help="models whose names begin so, e.g. camera")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    subjects = [
        Subject("camera, ONNX: 3 x 96 x 96", convolutional((3, 96, 96), (32, 64, 128)), Runtime.ONNXRUNTIME, (3, 96, 96), 16),
        Subject("digits, ONNX: 1 x 28 x 28", convolutional((1, 28, 28), (16, 32)), Runtime.ONNXRUNTIME),
        Subject("linear, ONNX", poison_file(Behaviour.CRASH, Runtime.ONNXRUNTIME, ink=2.0), Runtime.ONNXRUNTIME),
        Subject("linear, TFLite", poison_file(Behaviour.CRASH, Runtime.LITERT, ink=2.0), Runtime.LITERT),
    ]
    rows = [measure(subject, options) for subject in subjects if subject.name.startswith(options.only)]
    if options.json:
        print(json.dumps(rows, indent=2))
        return 0
    for row in rows:
        print(f"{row['model']}")
        print(f"    one picture: alone {row['alone_p50_ms']:.3f} ms, API {row['api_p50_ms']:.3f} ms (p95 {row['api_p95_ms']:.3f})", end="")
        print(f", added {row['added_p50_ms']:.3f} ms")
        print(f"    CPU time:    one picture {row['alone_one_cpu_ms']:.3f} and {row['api_one_cpu_ms']:.3f} ms, ", end="")
        print(f"a batch {row['alone_batch_cpu_ms']:.3f} and {row['api_batch_cpu_ms']:.3f} ms")
        print(f"    in batches:  alone {row['alone_per_s']:,.0f}/s, API {row['api_share']:.1%}, streamed {row['stream_share']:.1%}")
    return 0


def measure(subject: Subject, options: argparse.Namespace) -> dict[str, Any]:
    """One model."""
    variant = poison_variant(subject.data, subject.runtime)
    variant = msgspec.structs.replace(variant, length=len(subject.data), artifact=digest_of(subject.data), chunks=chunks_of(subject.data))
    size = -1 if subject.runtime is Runtime.ONNXRUNTIME else 1
    variant = msgspec.structs.replace(variant, input=msgspec.structs.replace(variant.input, shape=[size, *subject.shape]))
    pictures = np.random.default_rng(1).random((256, *subject.shape), np.float32) * 0.4
    with tempfile.TemporaryDirectory(prefix="covey-bench-") as folder, ExitStack() as stack:
        slot = fill(Path(folder), variant, subject.data, subject.shape)
        alone = load_model(slot / ("model.onnx" if subject.runtime is Runtime.ONNXRUNTIME else "model.tflite"), variant, threads=1)
        path = Path(folder) / "s"
        sock = stack.enter_context(listen_unix(path))
        job = InferJob(slot_dir=str(slot), slot="A", unix_fd=sock.fileno())
        worker = stack.enter_context(Child("infer", job, pass_fds=[sock.fileno()]))
        worker.wait_for(InferReady)
        client = stack.enter_context(Client(path, timeout_s=60))
        runs = [
            run(alone, client, pictures, options, batch=subject.batch) | use_cpu(alone, client, pictures, worker.process.pid, subject.batch)
            for _ in range(options.runs)
        ]
    row = {name: statistics.median(each[name] for each in runs) for name in runs[0]}
    return {"model": subject.name, **row}


def run(alone: VariantModel, client: Client, pictures: Floats, options: argparse.Namespace, *, batch: int) -> dict[str, float]:
    """Both, in turns."""
    singles: dict[str, list[float]] = {"alone": [], "api": []}
    for number in range(options.requests):
        picture = pictures[number % len(pictures)]
        singles["alone"].append(took(partial(alone.run, picture[None])))
        singles["api"].append(took(partial(client.infer, picture)))
    batches = [pictures[start : start + batch] for start in range(0, len(pictures), batch)]
    spent = {"alone": 0.0, "api": 0.0, "stream": 0.0}
    turns = 10
    for turn in range(0, options.batches, turns):
        mine = [batches[(turn + number) % len(batches)] for number in range(turns)]
        spent["alone"] += took(partial(exhaust, map(alone.run, mine)))
        spent["api"] += took(partial(exhaust, map(client.infer, mine)))
        spent["stream"] += took(partial(exhaust, client.stream(mine, ahead=4)))
    p50 = {name: 1000 * statistics.median(values) for name, values in singles.items()}
    return {
        "alone_p50_ms": p50["alone"],
        "api_p50_ms": p50["api"],
        "api_p95_ms": 1000 * sorted(singles["api"])[int(0.95 * len(singles["api"]))],
        "added_p50_ms": p50["api"] - p50["alone"],
        "alone_per_s": options.batches * batch / spent["alone"],
        "api_share": spent["alone"] / spent["api"],
        "stream_share": spent["alone"] / spent["stream"],
    }


def use_cpu(alone: VariantModel, client: Client, pictures: Floats, pid: int, batch: int) -> dict[str, float]:
    """CPU time in ms, of this process for the runtime alone, and of this process and the worker for the API: one picture, and one batch."""
    used = {}
    client.infer(pictures[0])
    for name, inputs, count in (("one", pictures[:1], 200), ("batch", pictures[:batch], 40)):
        for way, action in (("alone", alone.run), ("api", client.infer)):
            begun = time.process_time() + cpu_s(pid)
            exhaust(map(action, [inputs] * count))
            used[f"{way}_{name}_cpu_ms"] = 1000 * (time.process_time() + cpu_s(pid) - begun) / count
    return used


def cpu_s(pid: int) -> float:
    """CPU time of all threads of a process."""
    used = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(OSError):  # the thread of a stream that has ended
            used += int((task / "schedstat").read_text().split()[0])
    return used / 1e9


def exhaust(answers: Iterable[object]) -> None:
    """Wait for all of them."""
    deque(answers, maxlen=0)


def took(action: Callable[[], object]) -> float:
    """Seconds."""
    begun = time.perf_counter()
    action()
    return time.perf_counter() - begun


def fill(folder: Path, variant: Variant, data: bytes, shape: tuple[int, int, int]) -> Path:
    """A slot with it."""
    images = np.zeros((1, *shape), np.float32)
    release = make_release([variant], inputs=images, outputs=np.zeros((1, 10), np.float32), model="digits", labels=LABELS)
    return fill_slot(folder / "A", release, variant=variant.name, data=data)


def chunks_of(data: bytes) -> list[str]:
    """The digests of its chunks."""
    return [digest_of(data[start : start + CHUNK_BYTES]) for start in range(0, len(data), CHUNK_BYTES)]


def convolutional(shape: tuple[int, int, int], widths: tuple[int, ...]) -> bytes:
    """Convolutions that halve the picture, and a linear layer; random weights; float32[n, *shape] to float32[n, 10]."""
    chance = np.random.default_rng(0)
    nodes, weights = [], []
    channels, side, last = shape[0], shape[1], "input"
    for number, width in enumerate(widths):
        kernel = (chance.standard_normal((width, channels, 3, 3)) / (3 * channels**0.5)).astype(np.float32)
        weights.append(numpy_helper.from_array(kernel, f"w{number}"))
        nodes.append(helper.make_node("Conv", [last, f"w{number}"], [f"c{number}"], pads=[1, 1, 1, 1], strides=[2, 2]))
        nodes.append(helper.make_node("Relu", [f"c{number}"], [f"r{number}"]))
        channels, side, last = width, (side + 1) // 2, f"r{number}"
    head = (chance.standard_normal((10, channels * side * side)) / 30).astype(np.float32)
    weights.append(numpy_helper.from_array(head, "head"))
    nodes += [helper.make_node("Flatten", [last], ["flat"]), helper.make_node("Gemm", ["flat", "head"], ["output"], transB=1)]
    graph = helper.make_graph(
        nodes,
        "convolutional",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["n", *shape])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["n", 10])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    return bytes(model.SerializeToString())


if __name__ == "__main__":
    raise SystemExit(main())
