"""The console's files: pinned, hashed in their address, and nothing else is served."""

import hashlib
import re

import pytest
from tests.server.console.conftest import Desk

from covey_server.console import assets

_VENDOR = assets.STATIC / "vendor"
_ROW = re.compile(r"^\| ([\w./]+) \| [\w.]+ \| [\d.]+ \| [\w-]+ \| ([0-9a-f]{64}) \|$", re.MULTILINE)


def test_vendored_files_are_those_that_were_pinned() -> None:
    pinned = dict(_ROW.findall((_VENDOR / "VENDOR.md").read_text("utf-8")))
    there = {str(path.relative_to(_VENDOR)): path for path in _VENDOR.rglob("*") if path.suffix in {".js", ".css"}}
    assert pinned.keys() == there.keys()
    for name, path in there.items():
        assert hashlib.sha256(path.read_bytes()).hexdigest() == pinned[name]
        assert (path.parent / "LICENSE").is_file()


def test_an_asset_may_be_kept_for_ever(fleet: Desk) -> None:
    answer = fleet.get(assets.asset_url("covey.css"), role=None)
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/css")
    assert "immutable" in answer.headers["cache-control"]


def test_the_address_changes_with_the_content() -> None:
    data = (assets.STATIC / "live.js").read_bytes()
    assert hashlib.sha256(data).hexdigest()[:12] in assets.asset_url("live.js")


@pytest.mark.parametrize("path", ["covey.css", "covey.000000000000.css", "../templating.py", "%2e%2e/templating.py", "vendor/VENDOR.md"])
def test_nothing_but_known_addresses_is_served(fleet: Desk, path: str) -> None:
    assert fleet.get(f"/static/{path}", role=None).status_code == 404


def test_no_page_asks_another_server_for_anything() -> None:
    for path in (*assets.STATIC.glob("*.js"), *assets.STATIC.glob("*.css")):
        assert "://" not in path.read_text("utf-8")
