"""What commands print is text: not markup, not orders to the terminal."""

import sys
from pathlib import Path

import httpx
import pytest

from covey_server.cli.http import ApiClient
from covey_server.cli.main import main
from covey_server.cli.output import CommandError, ExitCode, complain, say, show_table

HOSTILE = "bad [/red] [bold]x[/bold] ^[a-z0-9-]{1,64}$ \x1b[2J"
SHOWN = r"bad [/red] [bold]x[/bold] ^[a-z0-9-]{1,64}$ \x1b[2J"


def test_brackets_and_control_characters_are_shown_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    say(HOSTILE)
    complain(HOSTILE)
    assert capsys.readouterr().err == f"{SHOWN}\nerror: {SHOWN}\n"


def test_a_table_shows_them_too(capsys: pytest.CaptureFixture[str]) -> None:
    show_table(HOSTILE, ["a"], [[HOSTILE]])
    show_table(HOSTILE, ["a"], [])
    assert capsys.readouterr().out.count("[bold]x[/bold]") == 3


@pytest.mark.parametrize("name", ["../users/admin", "a?x=1", "a b", "..", ".", "a#b", "", "a%2fb"])
def test_a_name_never_becomes_another_path(name: str) -> None:
    def never(_: httpx.Request) -> httpx.Response:
        raise AssertionError("a request was sent")

    client = ApiClient(httpx.Client(transport=httpx.MockTransport(never), base_url="http://x"))
    with pytest.raises(CommandError, match="expected an id") as told:
        client.delete(f"/tokens/{name}")
    assert told.value.code == ExitCode.USAGE


@pytest.mark.parametrize("argv", [["db", "status"], ["db", "upgrade"], ["init"]])
def test_a_folder_that_cannot_be_is_told_in_a_line(
    argv: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(sys, "argv", ["covey", *argv, "--work-dir", str(tmp_path / "file" / "fleet")])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == ExitCode.FAILED
    assert capsys.readouterr().err.startswith("error: ")
