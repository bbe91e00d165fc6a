"""Settings come from one file and the environment, and nothing unknown is taken."""

from pathlib import Path

import pytest
from pydantic import BaseModel

from covey_server.errors import InvalidInputError
from covey_server.settings import Settings, load_settings


def test_an_empty_folder_gives_the_defaults(tmp_path: Path) -> None:
    settings = load_settings(tmp_path)
    assert settings.api.port == 8700
    assert settings.resolved_database_url == f"sqlite:///{tmp_path}/fleet.db"


def test_the_environment_overrides_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "covey.toml").write_text('[api]\nport = 1000\nhost = "0.0.0.0"\n')
    monkeypatch.setenv("COVEY_API__PORT", "2000")
    settings = load_settings(tmp_path)
    assert (settings.api.port, settings.api.host) == (2000, "0.0.0.0")  # noqa: S104 - the value under test


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[api]\nprot = 1\n", "api.prot"),
        ("[api]\nport = 70000\n", "api.port"),
        ("[broker]\nkind = 'carrier-pigeon'\n", "broker.kind"),
        ("colour = 'red'\n", "colour"),
        ("[api\n", "not TOML"),
    ],
)
def test_a_wrong_file_is_refused_by_name(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "covey.toml").write_text(text)
    with pytest.raises(InvalidInputError, match=words):
        load_settings(tmp_path)


def test_every_setting_says_what_it_means() -> None:
    for name, field in Settings.model_fields.items():
        if isinstance(field.default, BaseModel):
            assert all(part.description for part in type(field.default).model_fields.values()), name
        else:
            assert field.description, name
