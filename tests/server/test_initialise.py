"""A work folder is completed, never replaced."""

from pathlib import Path

from sqlmodel import select

from covey_server import migrate
from covey_server.access.models import ApiToken
from covey_server.db import Database
from covey_server.initialise import initialise
from covey_server.settings import load_settings


def test_a_new_folder_becomes_a_server_once(tmp_path: Path) -> None:
    settings = load_settings(tmp_path)
    first = initialise(settings)
    authority, password = (tmp_path / "pki" / "ca.crt").read_bytes(), (tmp_path / "admin.password").read_text()
    again = initialise(settings)
    assert (first.created, again.created) == (True, False)
    assert (tmp_path / "pki" / "ca.crt").read_bytes() == authority
    assert (tmp_path / "admin.password").read_text() == password
    database = Database(settings.resolved_database_url)
    assert migrate.is_current(database)
    with database.read() as session:
        assert len(session.exec(select(ApiToken)).all()) == 1


def test_secrets_can_be_read_by_their_owner_only(tmp_path: Path) -> None:
    initialise(load_settings(tmp_path))
    secret = [
        "pki/ca.key",
        "pki/edge.key",
        "admin.password",
        "admin.token",
        *(f"keys/{p.parent.name}/{p.name}" for p in tmp_path.glob("keys/*/*.pem")),
    ]
    modes = {name: oct((tmp_path / name).stat().st_mode & 0o777) for name in secret}
    assert set(modes.values()) == {"0o600"}, modes


def test_a_start_that_was_broken_off_is_completed(tmp_path: Path) -> None:
    settings = load_settings(tmp_path)
    initialise(settings)
    (tmp_path / "admin.token").unlink()
    (tmp_path / "pki" / "gateway.crt").unlink()
    initialise(settings)
    assert (tmp_path / "admin.token").read_text().startswith("covey_")
    assert (tmp_path / "pki" / "gateway.crt").exists()
