"""An artifact over a bad link with an outage in the middle: bytes wasted, and how long commands take meanwhile.

    sudo .venv/bin/python benchmarks/bad_link.py --mib 2 --kbit 1000 --rtt-ms 100 --loss 0.05 --outage-s 20

A real `covey up` and a real agent in two network namespaces, joined by a wire that delays, queues and drops IP packets. The release is a
real ONNX model; the run is over when it lies in a slot. During the download a command is sent every second, and timed until the reply
is back: over the control connection alone (a command that was verified before the download and is sent again), and now and then a fresh
one, whose signature a child verifies over a connection of its own. Waste is what the device received beyond the artifact.

The peer, on the same wire afterwards: HTTPS range requests with resume, as a script would do it (standard library; the whole file, going on
at the offset after an error), while the same commands run. Prints a table, or JSON. Needs root, for the namespaces.
"""

import argparse
import contextlib
import json
import os
import ssl
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import paho.mqtt.client as mqtt
from onnx import TensorProto, helper, numpy_helper
from paho.mqtt.enums import CallbackAPIVersion
from rich.console import Console

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.fakes.lossy_wire import ADDRESSES, LossyWire, Shape

from covey_contract.codec import decode, encode
from covey_contract.messages import Reply, StopRun
from covey_contract.release import pack_floats
from covey_server.clock import to_millis, utc_now
from covey_server.demo.actors import Troupe, program
from covey_server.demo.bring_up import bring_up
from covey_server.demo.narrator import Narrator
from covey_server.demo.stage import DemoOptions, Stage
from covey_server.devices.authority import FileAuthority
from covey_server.releases.director import FileDirector
from covey_server.settings import Settings, load_settings

MIB = 1024 * 1024
DEVICE = "device-1"
COMMAND_EVERY_S = 1.0
INPUTS, OUTPUTS = 784, 10


def main() -> int:
    """Make the wire, and run the rest in its left namespace."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mib", type=float, default=2.0, help="size of the artifact")
    parser.add_argument("--kbit", type=float, default=1000.0, help="rate of the link in each direction")
    parser.add_argument("--rtt-ms", type=float, default=100.0)
    parser.add_argument("--loss", type=float, default=0.05, help="share of packets, in each direction")
    parser.add_argument("--outage-s", type=float, default=20.0, help="how long the link is down, once a third is there")
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--inside", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        return inside(options)
    if not LossyWire.is_possible():
        sys.stderr.write("bad_link: needs root, /dev/net/tun and ip: sudo .venv/bin/python benchmarks/bad_link.py\n")
        return 2
    rows: list[dict[str, Any]] = []
    for run in range(options.runs):
        names = (f"covey-a-{os.getpid()}", f"covey-b-{os.getpid()}")
        with tempfile.TemporaryDirectory(prefix="covey-link-") as folder, LossyWire(*names, seed=run) as wire:
            rows += attend(wire, names, Path(folder), options)
    show(rows, as_json=options.json)
    return 0


def attend(wire: LossyWire, names: tuple[str, str], folder: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Run the inside and do to the wire what it asks for."""
    bad = Shape(options.kbit, options.rtt_ms / 2, options.loss)
    shapes = {"good": Shape(), "bad": bad, "down": Shape(is_up=False)}
    command = ["ip", "netns", "exec", names[0], sys.executable, __file__, "--inside", f"{folder},{names[1]}", "--mib", str(options.mib)]
    command += ["--outage-s", str(options.outage_s)]
    rows = []
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for line in process.stdout:
            word, _, rest = line.strip().partition(" ")
            if word == "result":
                rows.append(json.loads(rest))
            elif word in shapes:
                wire.shape(shapes[word])
                process.stdin.write(f"{wire.counters[0].octets} {wire.counters[1].octets}\n")
                process.stdin.flush()
            else:
                sys.stderr.write(line)
    if process.returncode:
        raise SystemExit(f"the inside ended with {process.returncode}")
    return rows


def ask_wire(word: str) -> int:
    """Change the wire; bytes that went in at its left end so far."""
    print(word, flush=True)
    return int(sys.stdin.readline().split()[0])


def inside(options: argparse.Namespace) -> int:
    """In the server's namespace."""
    folder, namespace = options.inside.split(",")
    os.environ.update(
        {
            "COVEY_FLOWER__ENABLED": "false",
            "COVEY_BROKER__HOST": ADDRESSES[0],
            "COVEY_BROKER__PUBLIC_HOST": ADDRESSES[0],
            "COVEY_EDGE__HOST": ADDRESSES[0],
            "COVEY_EDGE__PUBLIC_HOST": ADDRESSES[0],
        }
    )
    demo = DemoOptions(devices=1, partners=0, rounds=1, seed=1, work_dir=Path(folder), stay=False, report=None)
    with (Path(folder) / "narration.log").open("w", encoding="utf-8") as narration:
        stage = Stage(demo, Path(folder), Narrator(Console(file=narration, width=160)), Troupe(Path(folder) / "logs"))
        try:
            bring_up(stage)
            here = ["ip", "netns", "exec", namespace]
            enrol(stage, here)
            with contextlib.closing(Commander(load_settings(stage.server_dir))) as commander:
                for way in (over_covey, over_https):
                    ask_wire("good")
                    commander.settle()
                    print("result", json.dumps(way(stage, here, commander, options)), flush=True)
        finally:
            stage.troupe.stop_all()
    return 0


def enrol(stage: Stage, here: list[str]) -> None:
    """The real agent, in its own namespace, while the link is still good."""
    state_dir = stage.state_dir(DEVICE)
    token = stage.call().post("/invitations", {"device": DEVICE})["token"]
    agent = [*here, program("covey-agent")]
    stage.troupe.call("enroll", [*agent, "enroll", "--token", token, "--state-dir", str(state_dir)], timeout_s=60)
    stage.troupe.start("agent", [*agent, "run", "--verbose", "--state-dir", str(state_dir)])
    stage.wait("the agent", lambda: stage.call().get(f"/devices/{DEVICE}")["presence"] == "online", timeout_s=60)
    log = stage.troupe.log_dir / "agent.log"
    stage.wait("its probe", lambda: "probe ended" in log.read_text(), timeout_s=90)


@dataclass
class Commander:
    """Sends commands as the server does, beside it, and takes the time until the reply."""

    settings: Settings
    repeated: str = ""
    waiting: dict[str, float] = field(default_factory=dict)
    took: dict[str, list[float]] = field(default_factory=lambda: {"repeated": [], "fresh": []})

    def __post_init__(self) -> None:
        self._director = FileDirector.load(self.settings)
        files = FileAuthority.open(self.settings).issue_gateway_certificate(now=utc_now())
        context = ssl.create_default_context(cafile=str(files.ca))
        context.load_cert_chain(files.certificate, files.key)
        self._client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id=f"commander-{uuid.uuid4().hex}")
        self._client.tls_set_context(context)
        self._client.on_message = self._on_message
        self._client.connect(self.settings.broker.host, self.settings.broker.port)
        self._client.subscribe(f"covey/v1/d/{DEVICE}/up/reply", qos=1)
        self._client.loop_start()

    def settle(self) -> None:
        """One command is verified before the link gets bad; it is the one that is repeated."""
        self.took = {"repeated": [], "fresh": []}
        self.repeated = uuid.uuid4().hex
        self._send(self.repeated)
        deadline = time.monotonic() + 60
        while self.repeated in self.waiting:
            if time.monotonic() > deadline:
                raise SystemExit("the agent does not answer a command on a good link")
            time.sleep(0.05)
        self.took = {"repeated": [], "fresh": []}

    def run(self, stop: threading.Event, is_quiet: Callable[[], bool]) -> None:
        """A command every now and then; none while the link is down, when nobody expects an answer."""
        turn = 0
        while not stop.wait(COMMAND_EVERY_S):
            if is_quiet():
                self.waiting.clear()
                continue
            turn += 1
            if turn % 5 == 0:
                self._send(uuid.uuid4().hex)
            elif self.repeated not in self.waiting:
                self._send(self.repeated)

    def close(self) -> None:
        """Disconnect."""
        self._client.disconnect()
        self._client.loop_stop()

    def _send(self, ident: str) -> None:
        command = StopRun(id=ident, device=DEVICE, expires_at=to_millis(utc_now()) + 3_600_000, run="nothing")
        self.waiting[ident] = time.monotonic()
        self._client.publish(f"covey/v1/d/{DEVICE}/down/command", encode(self._director.sign(encode(command))), qos=1)

    def _on_message(self, _client: mqtt.Client, _user: Any, message: mqtt.MQTTMessage) -> None:
        ident = decode(bytes(message.payload), Reply).id
        sent = self.waiting.pop(ident, None)
        if sent is not None:
            self.took["repeated" if ident == self.repeated else "fresh"].append(time.monotonic() - sent)


def over_covey(stage: Stage, here: list[str], commander: Commander, options: argparse.Namespace) -> dict[str, Any]:
    """The agent fetches a release, checks it, and serves it."""
    size, release = publish(stage, int(options.mib * MIB))
    state = stage.state_dir(DEVICE)

    def begin() -> None:
        order: dict[str, Any] = {"release": release, "name": "bad link", "selector": {"devices": [DEVICE]}, "start": True, "probation_s": 5}
        order |= {"phases": [{"name": "all", "percent": 100}], "deadline_s": 3600}
        stage.call().post("/rollouts", order)

    def is_over() -> bool:
        words = [*here, program("covey-agent"), "status", "--json", "--state-dir", str(state)]
        status = json.loads(subprocess.run(words, capture_output=True, check=True).stdout)
        if status["state"] == "rolled_back":
            raise SystemExit(f"the device refused it: {status['deployment']}")
        return any(slot["artifact"] and slot["model"] == "bench" for slot in status["slots"])

    def fetched() -> float:
        folder = state / "fetch"
        return sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file()) / size if folder.exists() else 0.0

    taken = suffer(commander, options, begin=begin, is_over=is_over, share=lambda: max(fetched(), 0.0))
    received = received_bytes(stage)
    return {"way": "covey over MQTT", "mib": size / MIB, "received_extra": received / size - 1} | taken


def received_bytes(stage: Stage) -> int:
    """What the device says that its deployment has cost."""

    def found() -> int | None:
        readings = stage.call().get_all(f"/devices/{DEVICE}/readings", kind="deployment")
        values = [reading["values"] for reading in readings if reading["values"].get("bytes_received")]
        return int(values[0]["bytes_received"]) if values else None

    return stage.wait("the deployment's reading", found, timeout_s=120)


def over_https(stage: Stage, here: list[str], commander: Commander, options: argparse.Namespace) -> dict[str, Any]:
    """The peer: a script that downloads a file of the same size by HTTPS and resumes."""
    size = int(options.mib * MIB)
    folder = stage.work_dir / "peer"
    folder.mkdir()
    (folder / "file").write_bytes(os.urandom(size))
    key, certificate, port = folder / "key", folder / "crt", stage.broker_port + 7
    words = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2", "-subj", "/CN=peer"]
    words += ["-addext", f"subjectAltName=IP:{ADDRESSES[0]}", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(words, check=True, capture_output=True)
    server = subprocess.Popen([sys.executable, "-c", _SERVER, str(folder / "file"), ADDRESSES[0], str(port), str(certificate), str(key)])
    time.sleep(3)
    client: list[subprocess.Popen[str]] = []

    def begin() -> None:
        argv = [*here, sys.executable, "-c", _CLIENT, ADDRESSES[0], str(port), str(certificate), str(size), str(folder / "got")]
        client.append(subprocess.Popen(argv, stdout=subprocess.PIPE, text=True))

    def share() -> float:
        got = folder / "got"
        return got.stat().st_size / size if got.exists() else 0.0

    try:
        taken = suffer(commander, options, begin=begin, is_over=lambda: client[0].poll() is not None, share=share)
    finally:
        server.kill()
        server.wait()
    assert client[0].stdout is not None
    received = int(client[0].stdout.read())
    return {"way": "HTTPS with resume", "mib": size / MIB, "received_extra": received / size - 1} | taken


def suffer(
    commander: Commander, options: argparse.Namespace, *, begin: Callable[[], None], is_over: Callable[[], bool], share: Callable[[], float]
) -> dict[str, Any]:
    """A download on the bad link, with the outage once a third is there."""
    stop, down = threading.Event(), threading.Event()
    thread = threading.Thread(target=commander.run, args=(stop, down.is_set), daemon=True)
    octets = ask_wire("bad")
    begun, broken_at = time.monotonic(), 0.0
    begin()
    thread.start()
    while not is_over():
        if not broken_at and options.outage_s and share() > 0.33:
            broken_at = time.monotonic()
            down.set()
            ask_wire("down")
            time.sleep(options.outage_s)
            ask_wire("bad")
            down.clear()
        if time.monotonic() - begun > 1800:
            raise SystemExit("not in half an hour")
        time.sleep(0.5)
    wall = time.monotonic() - begun
    stop.set()
    thread.join()
    octets = ask_wire("bad") - octets
    return {
        "wall_s": round(wall, 1),
        "outage": bool(broken_at) or not options.outage_s,
        "wire_bytes": octets,
        "commands": len(commander.took["repeated"]),
        "command_p50_s": quantile(commander.took["repeated"], 0.5),
        "command_p95_s": quantile(commander.took["repeated"], 0.95),
        "fresh": len(commander.took["fresh"]),
        "fresh_p50_s": quantile(commander.took["fresh"], 0.5),
    }


def publish(stage: Stage, size: int) -> tuple[int, int]:
    """A real model of about this size, whose every output can be told beforehand; (bytes, id of the release)."""
    hidden = max(1, size // 4 // (INPUTS + OUTPUTS))
    chance = np.random.default_rng()
    first = (chance.standard_normal((INPUTS, hidden)) / 28).astype(np.float32)
    second = (chance.standard_normal((hidden, OUTPUTS)) / hidden**0.5).astype(np.float32)
    nodes = [helper.make_node("MatMul", ["x", "a"], ["h"]), helper.make_node("MatMul", ["h", "b"], ["y"])]
    graph = helper.make_graph(
        nodes,
        "bench",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", INPUTS])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", OUTPUTS])],
        [numpy_helper.from_array(first, "a"), numpy_helper.from_array(second, "b")],
    )
    content = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8).SerializeToString()
    onnx.checker.check_model(content)
    inputs = chance.standard_normal((4, INPUTS)).astype(np.float32)
    golden = {
        "input_shape": [4, INPUTS],
        "output_shape": [4, OUTPUTS],
        "inputs": pack_floats(inputs.astype("<f4").tobytes()),
        "outputs": pack_floats((inputs @ first @ second).astype("<f4").tobytes()),
    }
    described = {
        "name": "onnx-float32",
        "precision": "float32",
        "runtime": "onnxruntime",
        "min_runtime_version": "1.20",
        "file": "model.onnx",
        "golden_tolerance": 0.05,
        "input": {"name": "x", "dtype": "float32", "shape": [-1, INPUTS]},
        "output": {"name": "y", "dtype": "float32", "shape": [-1, OUTPUTS]},
    }
    release = {"model": "bench", "labels": [str(label) for label in range(OUTPUTS)], "golden": golden, "variants": [described]}
    files = [
        ("description", ("release.json", json.dumps(release).encode(), "application/json")),
        ("artifacts", ("model.onnx", content, "application/octet-stream")),
    ]
    made = stage.call().post("/releases/imports", files=files, data={"unmeasured": "true"})
    return len(content), int(made["id"])


def quantile(values: list[float], share: float) -> float | None:
    """Of few values: the smallest that at least this share does not exceed."""
    if not values:
        return None
    ordered = sorted(values)
    return round(ordered[min(len(ordered) - 1, int(share * len(ordered)))], 3)


def show(rows: list[dict[str, Any]], *, as_json: bool) -> None:
    """The table."""
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    head = f"{'way':<20} {'MiB':>5} {'wall s':>7} {'extra':>7} {'on the wire':>12}"
    print(f"{head} {'command p50':>12} {'p95':>7} {'n':>4} {'fresh p50':>10} {'n':>3}")
    for way in dict.fromkeys(row["way"] for row in rows):
        mine = [row for row in rows if row["way"] == way]

        def median(name: str, mine: list[dict[str, Any]] = mine) -> float:
            values = [row[name] for row in mine if row[name] is not None]
            return statistics.median(values) if values else float("nan")

        first = f"{way:<20} {median('mib'):>5.2f} {median('wall_s'):>7.1f} {median('received_extra'):>7.2%}"
        second = (
            f"{median('wire_bytes') / MIB / median('mib') - 1:>11.1%}+ {median('command_p50_s'):>12.3f} {median('command_p95_s'):>7.3f}"
        )
        print(f"{first} {second} {median('commands'):>4.0f} {median('fresh_p50_s'):>10.3f} {median('fresh'):>3.0f}")


_SERVER = """
import http.server, ssl, sys
data = open(sys.argv[1], "rb").read()
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").rstrip("-"))
        self.send_response(206)
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        self.wfile.write(data[start:])
    def log_message(self, *a): pass
    def handle_error(self, *a): pass
server = http.server.ThreadingHTTPServer((sys.argv[2], int(sys.argv[3])), Handler)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(sys.argv[4], sys.argv[5])
server.socket = context.wrap_socket(server.socket, server_side=True)
server.serve_forever()
"""
_CLIENT = """
import http.client, ssl, sys, time
host, port, ca, size, path = sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4]), sys.argv[5]
context, received, have = ssl.create_default_context(cafile=ca), 0, 0
with open(path, "wb", buffering=0) as file:
    while have < size:
        try:
            connection = http.client.HTTPSConnection(host, port, timeout=10, context=context)
            connection.request("GET", "/", headers={"Range": f"bytes={have}-"})
            answer = connection.getresponse()
            while data := answer.read(16384):
                file.write(data)
                have += len(data)
                received += len(data)
        except (OSError, http.client.HTTPException):
            time.sleep(1)
print(received)
"""

if __name__ == "__main__":
    raise SystemExit(main())
