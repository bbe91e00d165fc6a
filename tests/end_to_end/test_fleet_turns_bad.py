"""A proven model turns bad: the device goes back by itself, the verdict is reopened, and only an operator lets it try again."""

import contextlib
import os
import signal
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from tests.end_to_end.live_fleet import Fleet

from covey_contract.messages import DeploymentState as State

pytestmark = [pytest.mark.end_to_end, pytest.mark.slow, pytest.mark.timeout(400)]
VICTIM = "device-1"


def test_a_model_that_keeps_dying_after_its_success_is_taken_back_for_good(fleet: Fleet) -> None:
    old, before = fleet.device(VICTIM)["serving_version"], quarantine(fleet)  # what earlier tests left there
    folder = fleet.pack()
    release = fleet.import_folder(folder)
    rollout = fleet.roll_out(release, VICTIM)
    assert fleet.wait_over(rollout)["state"] == "completed"
    deployment = fleet.parts(rollout)[VICTIM]["deployment_id"]

    kill_workers_until(fleet, State.ROLLED_BACK)
    part = fleet.wait("the verdict is reopened", lambda: failed(fleet, rollout))
    assert (part["deployment_id"], part["deployment_state"]) == (deployment, "rolled_back")
    assert "after its probation: the worker died 3 time(s)" in part["reason"]
    assert fleet.device(VICTIM)["serving_version"] == old
    assert fleet.stage.call().get(f"/rollouts/{rollout}")["reason"].startswith(f"reopened: {VICTIM} went back after its success")
    alerts = {alert["what"] for alert in fleet.stage.call().get_all("/alerts") if alert["subject"] == rollout}
    assert alerts == {"device_rolled_back", "rollout_reopened"}
    (digest,) = quarantine(fleet) - before

    fleet.kill(VICTIM)
    fleet.start_agent(VICTIM)
    same = fleet.import_folder(folder)
    assert same["version"] != release["version"]
    again = fleet.wait_over(fleet.roll_out(same, VICTIM))
    assert again["state"] == "halted", "another release and deployment, but the same artifact"
    assert "quarantine" in again["reason"]

    done = fleet.covey("device", "release-quarantine", VICTIM, digest[:8])
    assert done.returncode == 0, done.stderr
    fleet.wait("the device has obeyed", lambda: digest not in quarantine(fleet))
    assert fleet.device(VICTIM)["serving_version"] == old, "nothing is deployed for it"
    fleet.deploy(same, VICTIM)
    assert fleet.device(VICTIM)["serving_version"] == same["version"]


def failed(fleet: Fleet, rollout: str) -> dict[str, Any] | None:
    """The victim's part, once it has failed and the way back is over."""
    part = fleet.parts(rollout)[VICTIM]
    return part if (part["state"], part["deployment_state"]) == ("failed", "rolled_back") else None


def quarantine(fleet: Fleet) -> set[str]:
    """The digests that the victim has in quarantine."""
    return {entry["digest"] for entry in fleet.device(VICTIM)["quarantine"]}


def kill_workers_until(fleet: Fleet, state: State) -> None:
    """SIGSEGV to every infer worker of the victim, as native code would bring it about, until its deployment is in this state."""
    deadline = time.monotonic() + 120
    while fleet.machine(VICTIM).state is not state:
        assert time.monotonic() < deadline, fleet.explain()
        if fleet.machine(VICTIM).state is State.COMMITTED:
            for child in psutil.Process(fleet.stage.troupe.pid(VICTIM)).children():
                if b"covey_agent.workers.infer" in command_line(child.pid):
                    os.kill(child.pid, signal.SIGSEGV)
        time.sleep(0.3)


def command_line(pid: int) -> bytes:
    """Empty if the process has just ended."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""
