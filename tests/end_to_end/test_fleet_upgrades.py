"""The agent itself is upgraded from the server: one version that works, one that does not, one that may not. All real programs."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.end_to_end.live_fleet import Fleet
from tests.fakes.agent_wheel import CRASHES, build_wheel, digest_of_file

from covey_server.demo.stage import quiet_environment

pytestmark = [pytest.mark.end_to_end, pytest.mark.slow, pytest.mark.timeout(400)]
NAME = "upgraded"
QUICK = {"COVEY_LAUNCH_SETTLE_S": "1", "COVEY_LAUNCH_PAUSE_S": "0.1", "COVEY_LAUNCH_MAX_STARTS": "2"}


def covey(fleet: Fleet, *words: str) -> Any:
    done = fleet.covey(*words, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def alerts(fleet: Fleet, device: str, what: str) -> list[str]:
    found = fleet.stage.call().get_all("/alerts")
    return [alert["detail"] for alert in found if (alert["device_id"], alert["what"]) == (device, what)]


def test_an_operator_upgrades_agents_and_hears_of_those_that_went_back(fleet: Fleet, tmp_path: Path) -> None:
    state_dir = str(fleet.stage.state_dir(NAME))
    assert fleet.agent("enroll", "--token", fleet.invite(NAME), "--state-dir", state_dir).returncode == 0
    argv = [sys.executable, "-m", "covey_agent.launch", "run", "--state-dir", state_dir]
    fleet.stage.troupe.start(NAME, argv, env=quiet_environment() | QUICK)
    fleet.wait("the device reports", lambda: fleet.device(NAME)["reported"])

    good, bad = build_wheel(tmp_path, "9.9.8"), build_wheel(tmp_path, "9.9.9", run=CRASHES)
    assert covey(fleet, "agent", "publish", str(good)) == {"version": "9.9.8", "digest": digest_of_file(good)}
    covey(fleet, "agent", "publish", str(bad))
    assert [one["version"] for one in covey(fleet, "agent", "list")] == ["9.9.8", "9.9.9"]

    covey(fleet, "device", "upgrade", NAME, "9.9.8")
    fleet.wait("the new version reports", lambda: fleet.device(NAME)["agent_version"] == "9.9.8", timeout_s=120)
    fleet.wait("it is proven", lambda: not fleet.stage.agent_json(NAME, "upgrade")["on_trial"], timeout_s=60)

    covey(fleet, "device", "upgrade", NAME, "9.9.9")
    (reason,) = fleet.wait("the alert", lambda: alerts(fleet, NAME, "agent-upgrade"), timeout_s=120)
    assert "the upgrade of the agent to 9.9.9 failed: it ended with exit code 1" in reason
    assert fleet.device(NAME)["agent_version"] == "9.9.8"

    covey(fleet, "device", "upgrade", "device-1", "9.9.8")  # whose agent nobody would bring back
    (reason,) = fleet.wait("the refusal", lambda: alerts(fleet, "device-1", "agent_upgrade_refused"), timeout_s=60)
    assert "covey-agent-launch" in reason
    fleet.stage.troupe.stop(NAME)
    covey(fleet, "device", "revoke", NAME)
