"""Delivery of one artifact to many devices: what it costs the server and the broker, against HTTP range requests.

    .venv/bin/python benchmarks/delivery.py --devices 1 10 50 --mib 10 --runs 3

A real `covey up` for each broker (the embedded one, and Mosquitto where it is installed), devices with certificates of their own over
mutual TLS, and the agent's own fetch code; each run fetches an artifact that nobody has yet. The peer in the same call is what is usually
built for this: a FastAPI application under uvicorn with TLS that answers range requests from memory, fetched by the same device code;
Covey's own HTTPS supplier is measured as well. Prints medians over the runs: wall seconds, CPU milliseconds a device of server and broker,
the broker's peak memory, bytes that each device received beyond the artifact, and the ratio to the peer. With --json, one JSON document.

Measured from the moment when all devices are connected; what the same processes use when nothing happens is measured before and taken
off. Devices run as threads of one process, whose own CPU is not counted; on few cores it is what limits the wall time.
"""

import argparse
import contextlib
import json
import os
import secrets
import shutil
import ssl
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import msgspec
import psutil
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from rich.console import Console

from covey_agent.core.jobs import BrokerAddress
from covey_agent.workers.download import Download
from covey_agent.workers.fetch import Fetch, FetchPlace
from covey_agent.workers.link import BulkLink
from covey_agent.workers.pace import ChunkWindow
from covey_agent.workers.suppliers import Suppliers
from covey_contract.codec import digest_of
from covey_contract.limits import CHUNK_BYTES
from covey_contract.release import Needs, Runtime, TensorSpec, Variant
from covey_server.demo.actors import Troupe
from covey_server.demo.bring_up import bring_up
from covey_server.demo.narrator import Narrator
from covey_server.demo.stage import DemoOptions, Stage
from covey_server.devices.invitation_token import read_token

MIB = 1024 * 1024
IDLE_S = 3.0
_PEER = """
import sys
from pathlib import Path
import uvicorn
from fastapi import FastAPI, Request, Response
folder = Path(sys.argv[1])
held = {}
app = FastAPI()
@app.get("/{digest}")
async def ranges(digest: str, request: Request) -> Response:
    data = held.get(digest) or held.setdefault(digest, (folder / digest).read_bytes())
    start, end = (int(number) for number in request.headers["range"].removeprefix("bytes=").split("-"))
    body = data[start : end + 1]
    return Response(body, 206, {"Content-Range": f"bytes {start}-{start + len(body) - 1}/{len(data)}"})
uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[2]), ssl_certfile=sys.argv[3], ssl_keyfile=sys.argv[4], log_level="error")
"""


class Wave(msgspec.Struct):
    """What the device process is to do."""

    way: str  # mqtt, https, peer
    devices: list[BrokerAddress]
    variant: Variant
    folder: str
    peer_url: str = ""


@dataclass(frozen=True, slots=True)
class Fleet:
    """A server with enrolled devices."""

    stage: Stage
    devices: list[BrokerAddress]

    def processes(self, *words: str) -> list[psutil.Process]:
        """The server's children whose command line has one of these words."""
        server = psutil.Process(self.stage.troupe.pid("server"))
        found = []
        for child in server.children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if any(word in part for word in words for part in child.cmdline()):
                    found.append(child)
        return found


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", type=int, nargs="+", default=[1, 10, 50], help="sizes of a wave")
    parser.add_argument("--mib", type=float, default=10.0, help="size of the artifact")
    parser.add_argument("--runs", type=int, default=3, help="runs of each; medians are printed")
    parser.add_argument("--broker", action="append", choices=["embedded", "mosquitto"], help="only this one; may be given again")
    parser.add_argument("--json", action="store_true", help="one JSON document instead of the table")
    parser.add_argument("--wave", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.wave:
        return run_wave(msgspec.json.decode(Path(options.wave).read_bytes(), type=Wave))
    brokers = options.broker or ["embedded", *(["mosquitto"] if shutil.which("mosquitto") or Path("/usr/sbin/mosquitto").exists() else [])]
    rows: list[dict[str, Any]] = []
    for broker in brokers:
        with (
            tempfile.TemporaryDirectory(prefix="covey-delivery-") as folder,
            running_fleet(Path(folder), broker, max(options.devices)) as fleet,
        ):
            ways = ["mqtt", *(["https", "peer"] if broker == brokers[0] else [])]
            for count in options.devices:
                for way in ways:
                    runs = [measure(fleet, way, count, int(options.mib * MIB)) for _ in range(options.runs)]
                    rows.append({"broker": broker if way == "mqtt" else "-", "way": way, "devices": count} | medians(runs))
                    if not options.json:
                        show(rows[-1])
    for row in rows:
        peer = next((one for one in rows if one["way"] == "peer" and one["devices"] == row["devices"]), None)
        if peer and row is not peer:
            row["peer_cpu_to_ours"] = round(peer["cpu_ms_per_device"] / max(row["cpu_ms_per_device"], 0.01), 1)
    if options.json:
        print(json.dumps(rows, indent=2))
    else:
        print("\nCPU of the peer / CPU of this way, a device:")
        for row in rows:
            if "peer_cpu_to_ours" in row:
                print(f"  {row['way']:6} {row['broker']:10} {row['devices']:3} devices   {row['peer_cpu_to_ours']:6.1f}")
    return 0


@contextmanager
def running_fleet(folder: Path, broker: str, count: int) -> Iterator[Fleet]:
    """`covey up` with this broker and so many devices."""
    options = DemoOptions(devices=count, partners=0, rounds=1, seed=1, work_dir=folder, stay=False, report=None)
    with (folder / "narration.log").open("w", encoding="utf-8") as narration:
        stage = Stage(options, folder, Narrator(Console(file=narration, width=160)), Troupe(folder / "logs"))
        values = {
            "COVEY_FLOWER__ENABLED": "false",
            "COVEY_BROKER__KIND": broker,
            "COVEY_DELIVERY__MAX_MB_PER_S": "1000",
            "COVEY_DELIVERY__HTTPS_FIRST_MB": "1000",
        }
        before = {name: os.environ.get(name) for name in values}
        os.environ.update(values)
        try:
            bring_up(stage)
            yield Fleet(stage, [enrol(stage, device) for device in stage.devices])
        finally:
            for name, value in before.items():
                os.environ.pop(name)
                if value is not None:
                    os.environ[name] = value
            stage.troupe.stop_all()


def enrol(stage: Stage, device: str) -> BrokerAddress:
    """A device's certificate, asked for as the agent does, without an agent."""
    token = read_token(stage.call().post("/invitations", {"device": device})["token"])
    folder = stage.work_dir / "devices" / device
    folder.mkdir(parents=True)
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, device)])
    request = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, hashes.SHA256())
    body = {"token": token["t"], "device": device, "csr": request.public_bytes(serialization.Encoding.PEM).decode("ascii")}
    with httpx.Client(base_url=token["url"], verify=False, timeout=30) as edge:  # noqa: S501 - our own loopback address
        while (answer := edge.post("/edge/v1/enroll", json=body)).status_code == 429:
            time.sleep(float(answer.headers.get("Retry-After", "1")))
    answer.raise_for_status()
    given = answer.json()
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    for file, text in (("device.key", pem.decode("ascii")), ("device.crt", given["certificate"]), ("ca.crt", given["ca"])):
        (folder / file).write_text(text, "ascii")
    return BrokerAddress(
        host=given["mqtt"]["host"],
        port=given["mqtt"]["port"],
        ca_file=str(folder / "ca.crt"),
        cert_file=str(folder / "device.crt"),
        key_file=str(folder / "device.key"),
        device=device,
        session_file=str(folder / "device.key"),
    )


def publish(stage: Stage, size: int) -> Variant:
    """A release whose artifact nobody has seen yet; random bytes, since nothing here runs it."""
    content = secrets.token_bytes(size)
    tensor = {"name": "x", "dtype": "float32", "shape": [-1, 2]}
    described = {
        "name": "onnx-float32",
        "precision": "float32",
        "runtime": "onnxruntime",
        "min_runtime_version": "1.20",
        "file": "model.onnx",
        "golden_tolerance": 0.1,
        "input": tensor,
        "output": tensor,
    }
    golden = {"input_shape": [1, 2], "output_shape": [1, 2], "inputs": "AAAAAAAAAAA=", "outputs": "AAAAAAAAAAA="}
    release = {"model": "bench", "labels": ["a", "b"], "golden": golden, "variants": [described]}
    files = [
        ("description", ("release.json", json.dumps(release).encode(), "application/json")),
        ("artifacts", ("model.onnx", content, "application/octet-stream")),
    ]
    stage.call().post("/releases/imports", files=files, data={"unmeasured": "true"})
    return Variant(
        name="onnx-float32",
        precision="float32",
        needs=Needs(runtime=Runtime.ONNXRUNTIME, min_runtime_version="1.20"),
        artifact=digest_of(content),
        length=size,
        chunks=[digest_of(content[start : start + CHUNK_BYTES]) for start in range(0, size, CHUNK_BYTES)],
        input=TensorSpec(**tensor),  # type: ignore[arg-type]  # a dictionary of several types
        output=TensorSpec(**tensor),  # type: ignore[arg-type]  # a dictionary of several types
        golden_tolerance=0.1,
    )


def measure(fleet: Fleet, way: str, count: int, size: int) -> dict[str, float]:
    """One wave."""
    variant = publish(fleet.stage, size)
    folder = Path(tempfile.mkdtemp(dir=fleet.stage.work_dir))
    wave = Wave(way=way, devices=fleet.devices[:count], variant=variant, folder=str(folder / "fetch"))
    with contextlib.ExitStack() as stack:
        if way == "peer":
            server, wave.peer_url = stack.enter_context(running_peer(fleet, folder, variant))
            servers, brokers = [server], []
        elif way == "https":
            servers, brokers = fleet.processes("worker", "api"), fleet.processes("nats-server", "mosquitto")
        else:
            servers, brokers = fleet.processes("worker"), fleet.processes("nats-server", "mosquitto")
        order = folder / "wave.json"
        order.write_bytes(msgspec.json.encode(wave))
        peak = stack.enter_context(watching_memory(brokers))
        command = [sys.executable, __file__, "--wave", str(order)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as devices:
            assert devices.stdin is not None
            assert devices.stdout is not None
            devices.stdout.readline()  # all are connected
            idle = {name: rate(processes) for name, processes in (("server", servers), ("broker", brokers))}
            before = {process.pid: cpu_s(process) for process in (*servers, *brokers)}
            devices.stdin.write("go\n")
            devices.stdin.flush()
            said = devices.stdout.readline()
            after = {process.pid: cpu_s(process) for process in (*servers, *brokers)}
        if not said:
            raise SystemExit("the devices failed")
        result: dict[str, float] = json.loads(said)
        spent = {
            name: max(0.0, sum(after[one.pid] - before[one.pid] for one in processes) - idle[name] * result["wall_s"]) * 1000
            for name, processes in (("server", servers), ("broker", brokers))
        }
    shutil.rmtree(folder, ignore_errors=True)
    return result | {
        "server_cpu_ms": spent["server"],
        "broker_cpu_ms": spent["broker"],
        "cpu_ms_per_device": (spent["server"] + spent["broker"]) / count,
        "broker_peak_mb": peak[0] / MIB,
    }


@contextmanager
def running_peer(fleet: Fleet, folder: Path, variant: Variant) -> Iterator[tuple[psutil.Process, str]]:
    """The usual thing, under a certificate of the same kind as ours; it has the artifact in memory before it is measured."""
    content = fleet.stage.server_dir / "blobs" / variant.artifact[:2] / variant.artifact[2:]
    (folder / "held").mkdir()
    shutil.copyfile(content, folder / "held" / variant.artifact)
    key, certificate = folder / "peer.key", folder / "peer.crt"
    make_certificate(key, certificate)
    port = fleet.stage.broker_port + 7
    command = [sys.executable, "-c", _PEER, str(folder / "held"), str(port), str(certificate), str(key)]
    with subprocess.Popen(command) as process:
        try:
            url = f"https://localhost:{port}/{variant.artifact}"
            context = ssl.create_default_context(cafile=str(certificate))
            deadline = time.monotonic() + 30
            while True:
                try:
                    httpx.get(url, headers={"Range": "bytes=0-1"}, verify=context, timeout=5)
                    break
                except httpx.TransportError:
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(0.1)
            yield psutil.Process(process.pid), f"{url} {certificate}"
        finally:
            process.terminate()


def make_certificate(key_file: Path, certificate_file: Path) -> None:
    """For localhost, signed by itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now.replace(year=now.year - 1))
        .not_valid_after(now.replace(year=now.year + 1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    key_file.write_bytes(pem)
    certificate_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))


@contextmanager
def watching_memory(processes: list[psutil.Process]) -> Iterator[list[float]]:
    """The peak of their resident memory together, in a list of one, bytes."""
    peak, stop = [0.0], threading.Event()

    def watch() -> None:
        while not stop.wait(0.05):
            with contextlib.suppress(psutil.Error):
                peak[0] = max(peak[0], float(sum(process.memory_info().rss for process in processes)))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        stop.set()
        thread.join()


def rate(processes: list[psutil.Process]) -> float:
    """CPU seconds a second that these processes use when nothing happens."""
    begun, before = time.monotonic(), sum(cpu_s(process) for process in processes)
    time.sleep(IDLE_S)
    return (sum(cpu_s(process) for process in processes) - before) / (time.monotonic() - begun)


def cpu_s(process: psutil.Process) -> float:
    """User and system time so far."""
    times = process.cpu_times()
    return float(times.user + times.system)


def run_wave(wave: Wave) -> int:
    """The device process: every device in a thread, all at once; prints what they saw."""
    received: list[int] = []
    failures: list[str] = []
    barrier, go = threading.Barrier(len(wave.devices) + 1), threading.Event()

    def device(address: BrokerAddress) -> None:
        try:
            with contextlib.ExitStack() as stack:
                link = stack.enter_context(BulkLink(address))
                if wave.way != "peer":
                    link.fetch_part("metadata/timestamp.json", 0)  # connected, as it is by the time an artifact is fetched
                barrier.wait(120)
                go.wait(120)
                fetch = Fetch(
                    stack.enter_context(contextlib.closing(source(wave, address, link))),
                    FetchPlace(Path(wave.folder) / address.device, None, 0),
                    tell=lambda _: None,
                    clock=time.monotonic,
                    window=ChunkWindow(16),
                )
                fetch.obtain(wave.variant)
                received.append(fetch.received)
        except Exception as exc:  # noqa: BLE001 - the top of a thread: told to whoever started the wave
            failures.append(f"{address.device}: {exc!r}")

    Path(wave.folder).mkdir(parents=True)
    threads = [threading.Thread(target=device, args=(address,)) for address in wave.devices]
    for thread in threads:
        thread.start()
    barrier.wait(120)
    print("ready", flush=True)
    sys.stdin.readline()
    begun = time.monotonic()
    go.set()
    for thread in threads:
        thread.join()
    if failures:
        print("\n".join(failures), file=sys.stderr)
        return 1
    print(json.dumps({"wall_s": time.monotonic() - begun, "extra_share": sum(received) / len(received) / wave.variant.length - 1}))
    return 0


def source(wave: Wave, address: BrokerAddress, link: BulkLink) -> Download | Suppliers:
    """The supplier of one device."""
    if wave.way == "peer":
        url, certificate = wave.peer_url.split()
        return Download(url, ca_file=certificate)
    suppliers = Suppliers(link, link.fetch_part, lambda offer: Download(offer.url, ca_file=address.ca_file))
    if wave.way == "https":
        suppliers.prefer("HTTPS", wave.variant.artifact)
    return suppliers


def medians(runs: list[dict[str, float]]) -> dict[str, float]:
    """Of every figure."""
    return {name: round(statistics.median(run[name] for run in runs), 3) for name in runs[0]}


def show(row: dict[str, Any]) -> None:
    """One line of the table."""
    costs = f"server {row['server_cpu_ms']:8.0f} ms  broker {row['broker_cpu_ms']:7.0f} ms  a device {row['cpu_ms_per_device']:7.1f} ms"
    rest = f"broker peak {row['broker_peak_mb']:6.1f} MB  extra bytes {row['extra_share']:6.2%}"
    print(f"{row['way']:6} {row['broker']:10} {row['devices']:3} devices  wall {row['wall_s']:6.2f} s  {costs}  {rest}", flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
