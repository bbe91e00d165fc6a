"""The commands of the device side, against the real API in this process."""

import json
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
from click.testing import Result
from tests.fakes.server_parts import START, TestParts, api_client, enrol, make_parts
from typer.testing import CliRunner

from covey_contract.ids import DeviceId
from covey_contract.messages import Reading, ReadingBatch
from covey_server.access import service as access
from covey_server.cli import alerts, audit, devices, telemetry, tokens
from covey_server.cli.http import ApiClient
from covey_server.cli.output import CommandError, ExitCode
from covey_server.clock import to_millis
from covey_server.devices.invitation_token import read_token
from covey_server.devices.models import QuarantineEntry
from covey_server.rollouts import api as rollouts_api
from covey_server.telemetry import service as readings
from covey_server.triggers import service as triggers

MODULES = {"device": devices, "token": tokens, "readings": telemetry, "audit": audit, "alert": alerts}


@pytest.fixture
def parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TestParts:
    parts = make_parts(tmp_path)

    def connect() -> ApiClient:
        return ApiClient(cast(httpx.Client, api_client(parts, rollouts_api.router)))

    for module in MODULES.values():
        monkeypatch.setattr(module, "connect", connect)
    return parts


def run(*argv: str) -> Result:
    return CliRunner().invoke(MODULES[argv[0]].app, list(argv[1:]) if len(MODULES[argv[0]].app.registered_commands) > 1 else list(argv[2:]))


def run_json(*argv: str) -> Any:
    result = run(*argv, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def failure(*argv: str) -> CommandError:
    result = run(*argv)
    assert isinstance(result.exception, CommandError), result.output
    return result.exception


def test_release_quarantine_takes_beginnings_or_everything(parts: TestParts) -> None:
    enrol(parts, "cam-1")
    with parts.db.begin() as session:
        for digest in ("ab" * 32, "cd" * 32):
            session.add(QuarantineEntry(device_id="cam-1", digest=digest, reason="killed by SIGFPE", at=START))
    assert run_json("device", "release-quarantine", "cam-1", "abab") == {"digests": ["ab" * 32]}
    assert run_json("device", "release-quarantine", "cam-1") == {"digests": ["ab" * 32, "cd" * 32]}
    assert "cdcdcdcdcdcd" in run("device", "release-quarantine", "cam-1", "cdcd").stderr
    assert "has in quarantine" in str(failure("device", "release-quarantine", "cam-1", "ffff"))


def test_invite_prints_the_token_and_nothing_else(parts: TestParts) -> None:
    result = run("device", "invite", "cam-1", "--label", "site=lyon")
    assert read_token(result.stdout.strip())["id"] == "cam-1"
    assert "covey-agent enroll --token TOKEN" in result.stderr


def test_devices_are_listed_shown_labelled_and_revoked(parts: TestParts) -> None:
    enrol(parts, "cam-1")
    enrol(parts, "hospital", profile="partner")
    assert [device["id"] for device in run_json("device", "list")] == ["cam-1", "hospital"]
    assert [device["id"] for device in run_json("device", "list", "--profile", "partner")] == ["hospital"]
    assert "cam-1" in run("device", "list").stdout
    assert run_json("device", "label", "cam-1", "site=lyon", "floor=2")["labels"] == {"floor": "2", "site": "lyon"}
    assert run_json("device", "label", "cam-1", "floor=")["labels"] == {"site": "lyon"}
    assert "site=lyon" in run("device", "show", "cam-1").stdout
    assert run_json("device", "revoke", "cam-1")["state"] == "revoked"


def test_failures_have_their_own_exit_codes(parts: TestParts) -> None:
    enrol(parts, "cam-1")
    assert failure("device", "show", "cam-9").code is ExitCode.NOT_FOUND
    assert failure("device", "invite", "a/b").code is ExitCode.REFUSED
    assert failure("device", "invite", "cam-1").code is ExitCode.REFUSED
    assert failure("device", "label", "cam-1", "nonsense").code is ExitCode.USAGE
    assert run("device", "label", "cam-1").exit_code == ExitCode.USAGE


def test_tokens_are_made_listed_and_revoked(parts: TestParts) -> None:
    made = run_json("token", "create", "ci", "--role", "operator", "--expires-in-days", "1")
    assert made["token"].startswith("covey_")
    assert "ci" in [token["name"] for token in run_json("token", "list")]
    assert run_json("token", "revoke", made["id"])["revoked_at"]
    assert "ci" in run("token", "list").stdout


def test_the_first_token_is_made_without_an_api(parts: TestParts) -> None:
    result = run("token", "create", "first", "--role", "admin", "--work-dir", str(parts.settings.path()))
    with parts.db.read() as session:
        actor, _ = access.actor_from_token(session, result.stdout.strip(), now=START)
    assert actor.name == "token:first"


def test_readings_of_a_device_and_of_the_fleet_are_shown(parts: TestParts) -> None:
    enrol(parts, "cam-1")
    with parts.db.begin() as session:
        batch = ReadingBatch("e1", 0, [Reading(to_millis(START), "infer", {"p50_ms": 1.23456})])
        readings.store_readings(session, DeviceId("cam-1"), batch, now=START)
    assert run_json("readings", "show")["stored"] == 1
    assert run_json("readings", "show", "cam-1")["latest"][0]["values"] == {"p50_ms": 1.23456}
    assert run_json("readings", "show", "cam-1", "--kind", "infer")[0]["sequence"] == 0
    assert "p50_ms=1.235" in run("readings", "show", "cam-1").stdout


def test_alerts_and_acts_are_listed(parts: TestParts) -> None:
    with parts.db.begin() as session:
        alert = triggers.raise_alert(session, "disk_full", now=START, device="cam-1")
    assert [entry["what"] for entry in run_json("alert", "list")] == ["disk_full"]
    assert run_json("alert", "ack", str(alert.id))["acknowledged_at"]
    assert run_json("alert", "list") == []
    assert len(run_json("alert", "list", "--all")) == 1
    assert run_json("audit", "list", "--action", "alert")[0]["action"] == "alert.acknowledged"
    assert failure("alert", "ack", "999").code is ExitCode.NOT_FOUND
