"""The covey-agent command: what a person sees, exit codes, JSON."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from tests.fakes.agent.outside import World, desired, manifest

from covey_agent import __version__
from covey_agent.adapters.ledger_file import LedgerFile
from covey_agent.adapters.store_sqlite import SqliteState, open_database
from covey_agent.cli import COMMANDS, main
from covey_agent.core.jobs import DeployRefused, Probed, Verified
from covey_agent.core.policy import LedgerEntry
from covey_agent.core.privacy import Charge, epsilon_of
from covey_contract.messages import Capabilities, Priority, PrivacyPlan


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    return int(ended.value.code or 0)


@pytest.fixture
def state_dir(tmp_path: Path) -> Path:
    """A device that was enrolled and has refused one release."""
    world = World(tmp_path)
    (world.state_dir / "identity").mkdir()
    identity = json.dumps(
        {
            "device": "cam-1",
            "profile": "device",
            "url": "https://localhost:1",
            "mqtt_host": "localhost",
            "mqtt_port": 1,
            "fleet_api": "localhost:2",
            "ca_fingerprint": "0" * 64,
            "enrolled_at": 1,
        }
    )
    (world.state_dir / "identity" / "identity.json").write_text(identity)
    world.fill_slot("A", 1)
    (world.state_dir / "slots" / "proven.json").write_text(
        json.dumps({"committed": "A", "quarantine": [{"digest": manifest(2), "reason": "killed by SIGSEGV", "at": 1}]})
    )
    life = world.boot()
    life.speak("probe", Probed(capabilities=Capabilities(), at=1))
    life.order(desired(5, 5))
    life.speak("deploy", DeployRefused(reason="no variant fits"))
    life.speak("verify", Verified())
    life.agent._hub.readings.add("alarm", {"what": "test"}, priority=Priority.ALARM)
    life.database.close()
    return world.state_dir


def show(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    assert run(*arguments, "--json") == 0
    return json.loads(capsys.readouterr().out)


def test_version_in_code_and_package_agree() -> None:
    pyproject = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    assert f'\nversion = "{__version__}"\n' in pyproject


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(command, "--help") == 0
    text = capsys.readouterr().out
    assert "--state-dir" in text
    assert "exit codes" in text


def test_status_tells_what_serves_and_what_happened(state_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status = show(capsys, "status", "--state-dir", str(state_dir))
    assert (status["device"], status["serving_slot"], status["state"], status["running"]) == ("cam-1", "A", "refused", False)
    assert status["desired_generation"] == 5
    assert status["deployment"]["reason"] == "no variant fits"
    assert status["readings_on_disk"] >= 1
    assert run("status", "--state-dir", str(state_dir)) == 0
    text = capsys.readouterr().out
    assert "does not run" in text
    assert "digits 1 as onnx-int8" in text
    assert "killed by SIGSEGV" in text
    assert run("status", "--state-dir", str(state_dir), "--require-running") == 7


def test_quarantine_and_readings_are_listed(state_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert show(capsys, "quarantine", "list", "--state-dir", str(state_dir))[0]["digest"] == manifest(2)
    kinds = [reading["kind"] for reading in show(capsys, "readings", "--state-dir", str(state_dir))]
    assert kinds[-1] == "alarm"
    assert "deployment" in kinds
    assert run("readings", "--limit", "1", "--state-dir", str(state_dir)) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_policy_and_data_are_set_and_shown(state_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    task = tmp_path / "task.py"
    task.write_bytes(b"def make_model(): ...\n")
    data = tmp_path / "digits.npz"
    data.write_bytes(b"data")
    folder = ("--state-dir", str(state_dir))
    digest = hashlib.sha256(task.read_bytes()).hexdigest()
    assert show(capsys, "policy", "allow-task", str(task), *folder) == {"task": digest}
    assert run("policy", *folder, "allow-task", str(task)) == 0
    assert run("policy", *folder, "set-budget", "digits", "3", "--delta", "1e-5") == 0
    assert run("data", *folder, "add", "digits", str(data)) == 0
    capsys.readouterr()
    shown = show(capsys, "policy", "show", *folder)
    assert shown["policy"]["tasks"] == [digest]
    assert shown["policy"]["budgets"]["digits"] == {"epsilon": 3.0, "delta": 1e-5}
    assert shown["datasets"] == {"digits": str(data)}


def test_ledger_recomputes_epsilon_from_its_charges(tmp_path: Path, state_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = PrivacyPlan("record", 1.5, 1.0, 0.1, 10, 1e-5)
    database = open_database(state_dir / "state.db")
    store = SqliteState(database, LedgerFile(state_dir / "ledger.jsonl"))
    for number in (1, 2):
        store.append_charge(LedgerEntry(run="run-1", round=number, dataset="digits", plan=plan, at=1))
    database.close()
    assert run("policy", "--state-dir", str(state_dir), "set-budget", "digits", "3", "--delta", "1e-5") == 0
    capsys.readouterr()
    ledger = show(capsys, "ledger", "--state-dir", str(state_dir))
    assert len(ledger["charges"]) == 2
    (digits,) = ledger["datasets"]
    assert digits["epsilon"] == pytest.approx(epsilon_of([Charge(1.5, 0.1, 20)], 1e-5))
    assert (digits["budget"], digits["rounds"]) == (3.0, 2)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["status"], 3, "not enrolled"),
        (["run"], 3, "not enrolled"),
        (["policy", "set-budget", "digits", "-3", "--delta", "0.1"], 2, "epsilon >= 0"),
        (["policy", "set-budget", "a/b", "3", "--delta", "0.1"], 2, "dataset must match"),
        (["policy", "allow-task", "/missing.py"], 3, "cannot read /missing.py"),
        (["data", "add", "digits", "/missing"], 3, "there is no /missing"),
        (["enroll", "--token", "x", "--profile", "boss"], 2, "invalid choice"),
        (["dance"], 2, "invalid choice"),
    ],
)
def test_errors_have_words_and_codes(
    arguments: list[str], code: int, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    known = arguments[0] in COMMANDS
    assert run(arguments[0], *(["--state-dir", str(tmp_path / "empty")] if known else []), *arguments[1:]) == code
    assert words in capsys.readouterr().err


def test_settings_are_shown_with_their_meaning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = show(capsys, "config", "show", "--state-dir", str(tmp_path))
    assert shown["readings.infer_interval_s"]["value"] == 5.0
    assert "seconds" in shown["readings.infer_interval_s"]["meaning"]
