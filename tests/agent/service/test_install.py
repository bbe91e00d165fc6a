"""`covey-agent install` and `uninstall` on a folder that stands for a machine; on a running systemd: test_under_systemd.py."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from covey_agent.adapters.ledger_file import LEDGER_NAME
from covey_agent.adapters.lock import StateLock
from covey_agent.cli import main
from covey_agent.service.files import Done, run_commands

STATE = "/var/lib/covey-agent"
FILES = ["etc/sysusers.d/covey-agent.conf", "etc/tmpfiles.d/covey-agent.conf", "etc/systemd/system/covey-agent.service"]


def run(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> Any:
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--json"])
    out, err = capsys.readouterr()
    assert ended.value.code == code, err
    return json.loads(out) if out else err


def install(capsys: pytest.CaptureFixture[str], root: Path, *more: str, code: int = 0) -> Any:
    return run(
        capsys, "install", "--root", str(root), "--state-dir", STATE, "--launcher", "/opt/covey/bin/covey-agent-launch", *more, code=code
    )


def test_it_writes_three_files_and_again_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = install(capsys, tmp_path)
    assert [one["subject"] for one in done if one["what"] == "written"] == [str(tmp_path / name) for name in FILES]
    assert all((tmp_path / name).stat().st_mode & 0o777 == 0o644 for name in FILES)
    assert "ExecStart=/opt/covey/bin/covey-agent-launch run --state-dir /var/lib/covey-agent\n" in (tmp_path / FILES[2]).read_text()
    assert {one["what"] for one in install(capsys, tmp_path)} == {"unchanged", "skipped"}


def test_a_dry_run_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert [one["what"] for one in install(capsys, tmp_path, "--dry-run")][:3] == ["written"] * 3
    assert list(tmp_path.iterdir()) == []


def test_an_edited_unit_is_put_right(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    install(capsys, tmp_path)
    (tmp_path / FILES[2]).write_text("[Service]\n")
    done = install(capsys, tmp_path)
    assert [one["subject"] for one in done if one["what"] == "written"] == [str(tmp_path / FILES[2])]


def test_uninstall_takes_the_files_and_leaves_the_state(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    install(capsys, tmp_path)
    state = tmp_path / STATE.lstrip("/")
    (state / "identity").mkdir(parents=True)
    run(capsys, "uninstall", "--root", str(tmp_path), "--state-dir", STATE)
    assert not any((tmp_path / name).exists() for name in FILES)
    assert (state / "identity").is_dir()
    assert run(capsys, "uninstall", "--root", str(tmp_path), "--state-dir", STATE)[0]["what"] == "unchanged"


def test_purge_takes_the_state_but_not_the_ledger(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = tmp_path / STATE.lstrip("/")
    for name in ("identity", "slots", "agent"):
        (state / name).mkdir(parents=True)
    for name in ("state.db", LEDGER_NAME, "agent.toml"):
        (state / name).write_text("x")
    run(capsys, "uninstall", "--purge", "--root", str(tmp_path), "--state-dir", STATE)
    assert sorted(path.name for path in state.iterdir()) == sorted([LEDGER_NAME, "agent.toml"])


def test_purge_spares_what_is_no_agents_and_what_an_agent_uses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = tmp_path / STATE.lstrip("/")
    state.mkdir(parents=True)
    (state / "thesis.tex").write_text("x")
    words = run(capsys, "uninstall", "--purge", "--root", str(tmp_path), "--state-dir", STATE, code=3)
    assert "does not look like" in words
    lock = StateLock.acquire(state / "agent.lock")
    words = run(capsys, "uninstall", "--purge", "--root", str(tmp_path), "--state-dir", STATE, code=6)
    assert f"process {os.getpid()}" in words
    lock.release()
    assert (state / "thesis.tex").exists()


def test_a_user_gets_a_unit_without_the_sandbox(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    launcher = tmp_path / "covey-agent-launch"
    launcher.touch()
    run(capsys, "install", "--user", "--dry-run", "--launcher", str(launcher))
    run(capsys, "install", "--user", "--launcher", str(launcher))
    unit = (tmp_path / "systemd" / "user" / "covey-agent.service").read_text()
    assert "User=" not in unit
    assert "ProtectSystem" not in unit
    assert ".local/state/covey-agent" in unit
    run(capsys, "uninstall", "--user")
    assert not (tmp_path / "systemd" / "user" / "covey-agent.service").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["install", "--user", "--root", "/x"], "exclude each other"),
        (["install", "--launcher", "/missing/launch"], "there is no /missing/launch"),
        (["install", "--root", "/x", "--launcher", "launch"], "absolute path"),
    ],
)
def test_what_cannot_be_meant_is_refused(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert words in run(capsys, *arguments, code=2)


def test_a_command_that_fails_ends_the_row() -> None:
    done = run_commands([["sh", "-c", "echo no room >&2; exit 1"], ["true"]], dry_run=False)
    assert done == [Done("failed", "sh -c echo no room >&2; exit 1", "no room")]
    assert run_commands([["no-such-program-here"]], dry_run=False)[0].detail == "there is no no-such-program-here here"
