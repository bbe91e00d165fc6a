"""`covey-agent logs`: from the journal, from a file, and a clear word when there is neither."""

import json
import logging
import os
import shutil
from pathlib import Path

import pytest

from covey_agent.cli import main
from covey_agent.commands.logs import follow_file, journal_scope, read_entry
from covey_agent.commands.run import JournalFormatter, choose_formatter
from covey_agent.service.unit import UNIT_NAME


def show(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> str:
    with pytest.raises(SystemExit) as ended:
        main(["logs", *arguments])
    out, err = capsys.readouterr()
    assert ended.value.code == code, err
    return out + err


@pytest.fixture(autouse=True)
def no_unit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("covey_agent.commands.logs._SYSTEM_UNITS", tmp_path / "none")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "none"))


def test_the_last_lines_of_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "agent.log").write_bytes(b"one\ntwo\nth\xffree\n")
    assert show(capsys, "--state-dir", str(tmp_path), "-n", "2") == "two\nth�ree\n"
    lines = show(capsys, "--state-dir", str(tmp_path), "--json").splitlines()
    assert [json.loads(line)["message"] for line in lines] == ["one", "two", "th�ree"]


def test_neither_journal_nor_file_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "covey-agent install" in show(capsys, "--state-dir", str(tmp_path), code=3)


def test_following_goes_on_after_a_rotation(tmp_path: Path) -> None:
    path = tmp_path / "agent.log"
    path.write_bytes(b"old\n")
    pauses: list[float] = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        match len(pauses):
            case 1:
                with path.open("ab") as file:
                    file.write(b"ha")
            case 2:
                with path.open("ab") as file:
                    file.write(b"lf\n")
            case 3:
                path.rename(tmp_path / "agent.log.1")
            case _:
                path.write_bytes(b"new\n")

    lines = follow_file(path, path.stat().st_size, pause=pause)
    assert [next(lines), next(lines)] == [b"half\n", b"new\n"]
    lines.close()


@pytest.mark.skipif(shutil.which("journalctl") is None, reason="needs journalctl")
def test_the_journal_of_the_installed_unit_comes_first(tmp_path: Path) -> None:
    machine, user = tmp_path / "machine", tmp_path / "user"
    machine.mkdir()
    user.mkdir()
    assert journal_scope(machine, user) == []
    (user / UNIT_NAME).touch()
    assert journal_scope(machine, user) == ["--user", "--unit", UNIT_NAME]
    (machine / UNIT_NAME).touch()
    assert journal_scope(machine, user) == ["--unit", UNIT_NAME]


def test_entries_of_the_journal_are_read() -> None:
    line = b'{"MESSAGE":[104,255],"PRIORITY":"4","_PID":"12","__REALTIME_TIMESTAMP":"1700000000000000"}'
    assert read_entry(line) == {"at": 1700000000000, "priority": 4, "pid": 12, "message": "h\ufffd"}


def test_the_journal_gets_levels_and_no_time() -> None:
    status = os.fstat(2)
    formatter = choose_formatter({"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"})
    record = logging.LogRecord("covey_agent.app", logging.WARNING, "", 0, "two\nlines", None, None)
    assert formatter.format(record) == "<4>covey_agent.app: two\n<4>lines"
    assert not isinstance(choose_formatter({"JOURNAL_STREAM": "1:2"}), JournalFormatter)
    assert not isinstance(choose_formatter({}), JournalFormatter)
