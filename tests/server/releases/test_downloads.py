"""Artifacts by HTTPS: addresses that end, ranges, and nothing that is not for devices."""

import random
from datetime import timedelta
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from tests.server.releases.bench import Bench, make_bench
from tests.server.releases.test_deltas import publish

from covey_contract.codec import digest_of
from covey_contract.offers import download_name
from covey_server.api_errors import install_error_handlers
from covey_server.releases import downloads
from covey_server.releases.downloads import NOWHERE, DownloadDesk, load_key
from covey_server.releases.service import withdraw_release
from covey_server.settings import DeliverySettings, Settings

CONTENT = random.Random(3).randbytes(200_000)
DIGEST = digest_of(CONTENT)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return make_bench(tmp_path)


@pytest.fixture
def edge(bench: Bench) -> TestClient:
    app = FastAPI()
    app.state.parts = bench.parts
    install_error_handlers(app)
    app.include_router(downloads.router)
    return TestClient(app)


def address(bench: Bench, digest: str = DIGEST) -> str:
    """The path that the server gives out for an artifact."""
    url = DownloadDesk(bench.parts.db, bench.parts.settings, bench.parts.clock).offer(download_name(digest)).url
    return url.removeprefix(bench.parts.settings.edge_url)


def test_an_address_is_good_for_ranges_of_a_published_artifact(bench: Bench, edge: TestClient) -> None:
    publish(bench, CONTENT)
    answer = edge.get(address(bench), headers={"Range": "bytes=65536-131071"})
    assert (answer.status_code, answer.content) == (206, CONTENT[65536:131072])
    assert answer.headers["content-range"] == f"bytes 65536-131071/{len(CONTENT)}"
    assert answer.headers["etag"] == f'"{DIGEST}"'
    assert edge.get(address(bench), headers={"Range": "bytes=199990-300000"}).content == CONTENT[199990:]
    assert edge.get(address(bench), headers={"Range": "bytes=200000-"}).status_code == 416
    assert edge.get(address(bench)).content == CONTENT


def test_an_address_ends(bench: Bench, edge: TestClient) -> None:
    publish(bench, CONTENT)
    path = address(bench)
    bench.clock.advance(timedelta(minutes=59).total_seconds())
    assert edge.get(path).status_code == 200
    bench.clock.advance(timedelta(minutes=2).total_seconds())
    assert edge.get(path).status_code == 401


@pytest.mark.parametrize("spoil", ["until=9999999999", "sign=00", "sign=%C3%A9", "until=-1", "until=x"])
def test_a_changed_address_is_refused(bench: Bench, edge: TestClient, spoil: str) -> None:
    publish(bench, CONTENT)
    parts = urlsplit(address(bench))
    query = dict(pair.split("=") for pair in parts.query.split("&"))
    name, value = spoil.split("=")
    query[name] = value
    text = "&".join(f"{key}={word}" for key, word in query.items())
    assert edge.get(f"{parts.path}?{text}").status_code in {401, 422}


def test_an_address_of_one_artifact_opens_no_other(bench: Bench, edge: TestClient) -> None:
    publish(bench, CONTENT)
    publish(bench, CONTENT[::-1])
    parts = urlsplit(address(bench))
    other = parts.path.replace(DIGEST, digest_of(CONTENT[::-1]))
    assert edge.get(f"{other}?{parts.query}").status_code == 401


def test_what_is_withdrawn_or_no_artifact_is_not_given_out(bench: Bench, edge: TestClient) -> None:
    release = publish(bench, CONTENT)
    path = address(bench)
    with bench.parts.db.begin() as session:
        withdraw_release(session, release, repository=bench.repository, actor="user:x")
    assert edge.get(path).status_code == 404
    desk = DownloadDesk(bench.parts.db, bench.parts.settings, bench.parts.clock)
    for name in (download_name(DIGEST), download_name("0" * 64), "downloads/", "downloads/../x", "deltas/x"):
        assert desk.offer(name) == NOWHERE


@pytest.mark.parametrize(
    ("changes", "first", "url"),
    [
        ({}, False, "https://127.0.0.1:8701/edge/v1/artifacts/"),
        ({"https_first_mb": 0.1}, True, "https://127.0.0.1:8701/edge/v1/artifacts/"),
        ({"download_url": "https://cdn.example/blobs/", "https": False}, False, f"https://cdn.example/blobs/{DIGEST}"),
        ({"https": False}, False, ""),
    ],
    ids=["fall-back", "large", "own host", "off"],
)
def test_the_operator_says_when_and_where(bench: Bench, changes: dict[str, object], first: bool, url: str) -> None:
    publish(bench, CONTENT)
    settings = bench.parts.settings.model_copy(update={"delivery": DeliverySettings(**changes)})
    offer = DownloadDesk(bench.parts.db, settings, bench.parts.clock).offer(download_name(DIGEST))
    assert (offer.first, offer.url.startswith(url), bool(offer.url)) == (first, True, bool(url))
    assert offer.fleet_ca is not bool(changes.get("download_url"))
    assert msgspec.json.decode(msgspec.json.encode(offer), type=type(offer)) == offer


def test_programs_that_begin_together_agree_on_the_key(tmp_path: Path) -> None:
    settings = Settings(work_dir=tmp_path)
    key = load_key(settings)
    assert load_key(settings) == key
    assert (tmp_path / "keys" / "downloads.key").stat().st_mode & 0o077 == 0
    assert [path.name for path in (tmp_path / "keys").iterdir()] == ["downloads.key"]
