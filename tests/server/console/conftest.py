"""A filled console to look at (one for all tests of a file), and a fresh one to act on."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import httpx2
import pytest
from fastapi.testclient import TestClient
from tests.fakes import console_data
from tests.fakes.console_app import build_console, log_in_as, open_database

from covey_server.access.logins import COOKIE_NAME
from covey_server.access.models import Role
from covey_server.db import Database

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)


@dataclass(frozen=True)
class Desk:
    """A console and the logins of one user of each role."""

    db: Database
    client: TestClient
    logins: dict[Role, tuple[str, str]]

    def get(self, path: str, *, role: Role | None = Role.VIEWER, part: str = "") -> httpx2.Response:
        """Look at a page, or at one live part of it as htmx does."""
        headers = {"HX-Request": "true", "HX-Target": part} if part else {}
        return self.client.get(path, headers=headers | self._cookie(role))

    def post(self, path: str, *, role: Role | None = Role.OPERATOR, csrf: str | None = None, **fields: str) -> httpx2.Response:
        """Send a form, with the login's own token unless another is given."""
        token = csrf if csrf is not None else self.logins[role][1] if role else ""
        return self.client.post(path, data=fields | {"csrf": token}, headers=self._cookie(role))

    def _cookie(self, role: Role | None) -> dict[str, str]:
        return {"Cookie": f"{COOKIE_NAME}={self.logins[role][0]}"} if role else {}


def open_desk(folder: Path, content: bytes | None = None) -> Desk:
    db = open_database(folder)
    if content is not None:
        (folder / "fleet.db").write_bytes(content)
    logins = {role: log_in_as(db, role, now=NOW) for role in (Role.VIEWER, Role.OPERATOR)}
    client = TestClient(build_console(db, clock=lambda: NOW, folder=folder), follow_redirects=False)
    return Desk(db, client, logins)


@pytest.fixture(scope="session")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The file of a filled database, made once."""
    folder = tmp_path_factory.mktemp("content")
    db = open_database(folder)
    with db.begin() as session:
        console_data.fill(session, now=NOW)
    db.close()
    return (folder / "fleet.db").read_bytes()


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> Iterator[Desk]:
    """A fleet to look at; tests must not change it."""
    desk = open_desk(tmp_path_factory.mktemp("console"), content)
    yield desk
    desk.db.close()


@pytest.fixture
def desk(tmp_path: Path, content: bytes) -> Iterator[Desk]:
    """A fleet to act on."""
    desk = open_desk(tmp_path, content)
    yield desk
    desk.db.close()


@pytest.fixture
def empty(tmp_path: Path) -> Iterator[Desk]:
    """A fleet without anything in it."""
    desk = open_desk(tmp_path)
    yield desk
    desk.db.close()
