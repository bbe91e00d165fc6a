"""Chunks by HTTPS, from a real TLS server that has good days and bad days."""

import random
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from tests.fakes.agent.edge import Authority
from tests.fakes.chunk_server import ChunkServer
from tests.fakes.tiny_releases import make_variant

from covey_agent.workers.download import Download, DownloadSettings
from covey_agent.workers.errors import NetworkError
from covey_agent.workers.fetch import Fetch, FetchPlace
from covey_agent.workers.pace import ChunkWindow
from covey_agent.workers.partial import PartialArtifact
from covey_agent.workers.suppliers import Suppliers
from covey_contract.codec import encode
from covey_contract.ids import Digest, parse_digest
from covey_contract.limits import CHUNK_BYTES, GROUP_CHUNKS
from covey_contract.messages import Chunk, DownloadOffer, MetadataPart

DATA = random.Random(1).randbytes(CHUNK_BYTES * (GROUP_CHUNKS + 2) + 100)
VARIANT = make_variant(DATA)
DIGEST = parse_digest(VARIANT.artifact)
QUICK = DownloadSettings(timeout_s=5.0, patience_s=5.0, pause_s=0.01, most_pause_s=0.05)
Answer = Callable[["Host", int, int], tuple[int, bytes, str]]


def right(host: "Host", start: int, end: int) -> tuple[int, bytes, str]:
    """(status, body, Content-Range) of a server that knows ranges."""
    body = DATA[start : end + 1]
    return 206, body, f"bytes {start}-{start + len(body) - 1}/{len(DATA)}"


class Host:
    """An HTTPS server; `answer` may be changed at any time, `cut` ends that many answers in the middle."""

    def __init__(self, folder: Path) -> None:
        self.answer: Answer = right
        self.cut = 0
        self.asked: list[tuple[int, int]] = []
        self.authority = Authority("fleet CA")
        key = ec.generate_private_key(ec.SECP256R1())
        (folder / "host.crt").write_text(self.authority.sign("host", key.public_key()))
        pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        (folder / "host.key").write_bytes(pem)
        self.ca = folder / "ca.crt"
        self.ca.write_text(self.authority.pem())
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder / "host.crt", folder / "host.key")
        host = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                start, end = (int(number) for number in self.headers["Range"].removeprefix("bytes=").split("-"))
                host.asked.append((start, end))
                status, body, content_range = host.answer(host, start, end)
                self.send_response(status)
                if content_range:
                    self.send_header("Content-Range", content_range)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if host.cut:
                    host.cut -= 1
                    self.wfile.write(body[: len(body) * 2 // 3])
                    self.close_connection = True
                else:
                    self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # the base class's name
                """Quiet."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def download(self, *, ca: Path | None = None) -> Download:
        """A client of it."""
        url = f"https://localhost:{self.server.server_address[1]}/{DIGEST}?sign=x"
        return Download(url, ca_file=str(ca or self.ca), settings=QUICK)


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    folder = tmp_path / "host"
    folder.mkdir()
    host = Host(folder)
    yield host
    host.server.shutdown()
    host.server.server_close()


@contextmanager
def fetching(source: Download | Suppliers, folder: Path) -> Iterator[Fetch]:
    """The device's own fetch over a supplier."""
    with closing(source):
        yield Fetch(source, FetchPlace(folder / "fetch", None, 0), tell=lambda _: None, clock=lambda: 0.0, window=ChunkWindow(16))


def test_an_artifact_comes_in_one_request_a_group(host: Host, tmp_path: Path) -> None:
    with fetching(host.download(), tmp_path) as fetch:
        assert fetch.obtain(VARIANT).read_bytes() == DATA
    assert host.asked == [(0, 16 * CHUNK_BYTES - 1), (16 * CHUNK_BYTES, 19 * CHUNK_BYTES - 1)]


def test_resuming_asks_for_exactly_what_is_missing(host: Host, tmp_path: Path) -> None:
    server = ChunkServer(DATA)
    with PartialArtifact(tmp_path / "fetch", DIGEST, length=VARIANT.length, chunks=VARIANT.chunks) as partial:
        for index in (*range(5), 7, *range(9, 16), 16, 18):
            partial.store(server.chunk(index))
    with fetching(host.download(), tmp_path) as fetch:
        assert fetch.obtain(VARIANT).read_bytes() == DATA
    assert [(start // CHUNK_BYTES, (end + 1) // CHUNK_BYTES) for start, end in host.asked] == [(5, 7), (8, 9), (17, 18)]


def test_a_connection_that_is_cut_costs_the_chunk_that_it_was_at(host: Host, tmp_path: Path) -> None:
    host.cut = 3
    with fetching(host.download(), tmp_path) as fetch:
        assert fetch.obtain(VARIANT).read_bytes() == DATA
    assert sum(end + 1 - start for start, end in host.asked) < 2.2 * len(DATA)


def status(code: int) -> Answer:
    """A server that says only this."""
    return lambda *_: (code, b"no", "")


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (status(404), "answered 404"),
        (status(401), "answered 401"),
        (lambda *_: (200, DATA, ""), "answered 200"),
        (lambda _, start, end: (206, DATA[:10], "bytes 0-9/10") if start else (206, b"", "bytes 5-9/10"), "another range"),
        (lambda _, start, end: (206, bytes(end + 1 - start), f"bytes {start}-{end}/*"), "not what the signed manifest says"),
    ],
    ids=["gone", "expired", "no ranges", "another range", "other bytes"],
)
def test_an_answer_that_helps_nobody_ends_it(host: Host, tmp_path: Path, answer: Answer, words: str) -> None:
    host.answer = answer
    with fetching(host.download(), tmp_path) as fetch, pytest.raises(NetworkError, match=words):
        fetch.obtain(VARIANT)


def test_a_server_in_trouble_is_asked_again(host: Host, tmp_path: Path) -> None:
    answers = iter([status(503), status(500)])

    def answer(host: Host, start: int, end: int) -> tuple[int, bytes, str]:
        return next(answers, right)(host, start, end)

    host.answer = answer
    with fetching(host.download(), tmp_path) as fetch:
        assert fetch.obtain(VARIANT).read_bytes() == DATA


def test_a_host_that_stays_away_is_left(host: Host, tmp_path: Path) -> None:
    host.server.shutdown()
    host.server.server_close()
    with fetching(host.download(), tmp_path) as fetch, pytest.raises(NetworkError, match="brought nothing"):
        fetch.obtain(VARIANT)


def test_a_host_of_another_authority_is_not_believed(host: Host, tmp_path: Path) -> None:
    stranger = tmp_path / "stranger.crt"
    stranger.write_text(Authority("another CA").pem())
    with fetching(host.download(ca=stranger), tmp_path) as fetch, pytest.raises(NetworkError, match="CERTIFICATE_VERIFY_FAILED"):
        fetch.obtain(VARIANT)
    assert host.asked == []


@pytest.mark.parametrize("url", ["http://localhost/x", "file:///etc/passwd", "https://", "nonsense"])
def test_only_https_is_taken(url: str) -> None:
    with pytest.raises(NetworkError, match="https"):
        Download(url, ca_file=None)


class Broker(ChunkServer):
    """The other supplier; `silent`: it brings nothing."""

    def __init__(self, offer: DownloadOffer | None, *, silent: bool = False) -> None:
        super().__init__(DATA)
        self.offer = offer
        self.silent = silent

    def chunks(self, digest: Digest, *, group: int, missing: Callable[[], int]) -> Iterator[Chunk]:
        if self.silent:
            raise NetworkError("no answer")
        yield from super().chunks(digest, group=group, missing=missing)

    def fetch_part(self, name: str, part: int) -> MetadataPart:
        assert name == f"downloads/{DIGEST}"
        return MetadataPart(id="x", part=part, parts=0 if self.offer is None else 1, data=b"" if self.offer is None else encode(self.offer))


@pytest.mark.parametrize(
    ("offer", "silent", "by_https"),
    [
        (DownloadOffer(url="https://h/x", first=True), False, True),
        (DownloadOffer(url="https://h/x"), False, False),
        (DownloadOffer(url="https://h/x"), True, True),
        (DownloadOffer(), False, False),
        (None, False, False),
        (DownloadOffer(url="ftp://h/x", first=True), False, False),
    ],
    ids=["HTTPS first", "MQTT first", "MQTT brings nothing", "nowhere", "an old server", "no address of ours"],
)
def test_the_server_says_which_way_comes_first_and_the_other_one_helps(
    host: Host, tmp_path: Path, offer: DownloadOffer | None, silent: bool, by_https: bool
) -> None:
    broker = Broker(offer, silent=silent)

    def make(given: DownloadOffer) -> Download:
        return host.download() if given.url.startswith("https") else Download(given.url, ca_file=None)

    with fetching(Suppliers(broker, broker.fetch_part, make), tmp_path) as fetch:
        assert fetch.obtain(VARIANT).read_bytes() == DATA
    assert (bool(host.asked), bool(broker.asked)) == (by_https, not by_https)


def test_a_host_that_fails_in_mid_artifact_is_relieved_by_the_broker(host: Host, tmp_path: Path) -> None:
    host.answer = lambda _, start, end: right(host, start, end) if start == 0 else (404, b"", "")
    broker = Broker(DownloadOffer(url="https://h/x", first=True))
    with fetching(Suppliers(broker, broker.fetch_part, lambda _: host.download()), tmp_path) as fetch:
        assert fetch.obtain(VARIANT).read_bytes() == DATA
    assert broker.asked == [(1, 0b111)], "only what was missing"
