"""What a deployment costs its child in memory, and what the artifact's size adds to it.

`benchmarks/delivery_memory.py` is the same up to 500 MB, with a real server.
"""

import contextlib
import random
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.fakes.children import Child
from tests.fakes.nats_broker import RunningBroker, running_broker
from tests.fakes.tiny_releases import make_release, make_variant
from tests.fakes.tuf_repository import Director, TufRepository
from tests.fakes.usage import peak_rss_kb
from tests.fakes.wants_server import WantsServer

from covey_agent.core.jobs import BrokerAddress, DeployJob, Staged
from covey_agent.workers.slotmodel import read_slot
from covey_contract.codec import digest_of, encode
from covey_contract.messages import Capabilities, Desired, DownloadOffer, ReleaseRef
from covey_contract.offers import download_name

pytestmark = pytest.mark.broker

DEVICE = "pi-1"
SMALL, LARGE = 100_000, 64_000_000
MAX_GROWTH_KB = 8 * 1024  # a second copy of the large artifact, or of an eighth of it, would not fit
ABLE = Capabilities(arch="x86_64", memory=1 << 30, runtimes={"onnxruntime": "1.31.1"})


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningBroker]:
    with running_broker(tmp_path_factory.mktemp("broker"), devices=[DEVICE]) as made:
        yield made


@contextlib.contextmanager
def https_host(broker: RunningBroker, data: bytes) -> Iterator[str]:
    """Ranges of `data` under a certificate of the fleet's CA; the URL."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            start, end = (int(number) for number in self.headers["Range"].removeprefix("bytes=").split("-"))
            body = data[start : end + 1]
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{start + len(body) - 1}/{len(data)}")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # the base class's name
            """Quiet."""

    files = broker.authority.issue_server_certificate(["localhost"], role="host", now=datetime.now(UTC))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.certificate, files.key)
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"https://localhost:{server.server_address[1]}/artifact"
        server.shutdown()
        thread.join()


def is_fetching(pid: int) -> bool:
    """Whether the child has left the program that checks the order."""
    return b"covey_agent.workers.fill" in Path(f"/proc/{pid}/cmdline").read_bytes()


def peak_kb(broker: RunningBroker, folder: Path, size: int, way: str) -> int:
    """The child's peak while it fetches, verifies and stages an artifact of this size."""
    data = random.Random(size).randbytes(size)
    zeros = np.zeros((1, 2), np.float32)
    manifest = encode(make_release([make_variant(data)], inputs=zeros, outputs=zeros))
    director, repository = Director(), TufRepository()
    repository.add_target("director.json", director.public_document())
    repository.add_target("releases/tiny/1.json", manifest)
    repository.publish()
    order = Desired(device=DEVICE, generation=1, issued_at=1, release=ReleaseRef("tiny", 1, digest_of(manifest)))
    files, state = broker.identity(DEVICE), repository.enrol(folder / "state")
    job = DeployJob(
        state_dir=str(state),
        broker=BrokerAddress("localhost", broker.port, str(files.ca), str(files.certificate), str(files.key), DEVICE),
        order=encode(director.sign(order)),
        slot_dir=str(state / "slots" / "B"),
        active_artifact="",
        capabilities=ABLE,
        quarantine=[],
        reserve_bytes=0,
    )
    with contextlib.ExitStack() as stack:
        if way == "HTTPS":
            url = stack.enter_context(https_host(broker, data))
            repository.files[download_name(digest_of(data))] = encode(DownloadOffer(url=url, first=True))
        stack.enter_context(WantsServer(broker, repository, {digest_of(data): data}))
        child = stack.enter_context(Child("deploy", job))
        peak = 0
        while child.process.poll() is None:
            with contextlib.suppress(OSError, KeyError):  # it has just ended
                if is_fetching(child.process.pid):
                    peak = max(peak, peak_rss_kb(child.process.pid))
            time.sleep(0.005)
        last = child.rest()[-1]
    assert isinstance(last, Staged), (last, child.log)
    assert last.fetched == f"whole, by {way}"
    assert read_slot(state / "slots" / "B").model.stat().st_size == size
    return peak


@pytest.mark.parametrize("way", ["MQTT", "HTTPS"])
def test_an_artifact_640_times_as_large_takes_hardly_more_memory(broker: RunningBroker, tmp_path: Path, way: str) -> None:
    small, large = (peak_kb(broker, tmp_path / str(size), size, way) for size in (SMALL, LARGE))
    assert small > 0
    assert large - small < MAX_GROWTH_KB, f"{small} KiB for {SMALL} bytes, {large} KiB for {LARGE} bytes"


def test_what_checks_the_order_is_out_of_memory_before_anything_is_fetched() -> None:
    script = "import sys, covey_agent.workers.fill; print(*{name.partition('.')[0] for name in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True, text=True).stdout.split()
    assert "paho" in loaded
    assert not {"tuf", "securesystemslib", "cryptography", "urllib3"} & set(loaded)
