"""`covey keys`, on a real work folder."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from tuf.api.metadata import Metadata, Root
from typer.testing import CliRunner

from covey_server.cli import keys
from covey_server.releases.director import FileDirector
from covey_server.releases.keys import offline_key_path
from covey_server.releases.repository import TufRepository
from covey_server.settings import Settings


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    settings = Settings(work_dir=tmp_path)
    FileDirector.create(settings, TufRepository.create(settings, datetime.now(UTC) - timedelta(days=1)))
    monkeypatch.setenv("COVEY_HOME", str(tmp_path))
    return settings


def test_keys_are_shown_with_their_place_and_end_and_never_their_secret(settings: Settings) -> None:
    shown = CliRunner().invoke(keys.app, ["show", "--json"]).stdout
    found = {key["role"]: key for key in json.loads(shown)}
    assert set(found) == {"root", "targets", "snapshot", "timestamp", "director"}
    assert found["director"]["public"] == FileDirector.load(settings).keyid
    assert found["root"]["file"] == str(offline_key_path(settings))
    assert found["timestamp"]["expires"] < found["root"]["expires"]
    assert "PRIVATE" not in shown
    root = Metadata[Root].from_bytes(TufRepository(settings).newest_root()).signed
    assert {role: [found[role]["public"]] for role in root.roles} == {role: named.keyids for role, named in root.roles.items()}
    assert (found["root"]["threshold"], found["root"]["holders"]) == (1, root.roles["root"].keyids)


def test_a_root_key_that_was_taken_away_is_not_here_and_renews_from_where_it_is_kept(settings: Settings, tmp_path: Path) -> None:
    safe = tmp_path / "safe.pem"
    offline_key_path(settings).rename(safe)
    found = json.loads(CliRunner().invoke(keys.app, ["show", "--json"]).stdout)
    assert (found[0]["role"], found[0]["file"]) == ("root", "not here")
    before = TufRepository(settings).expiries()["root"]
    assert CliRunner().invoke(keys.app, ["renew-root", "--key", str(safe)]).exit_code == 0
    assert TufRepository(settings).expiries()["root"] > before
