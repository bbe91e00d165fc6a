"""The server's whole folder is put back from an old backup under a live device: told by an alert, put right by `covey keys recover`."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.end_to_end.live_fleet import Fleet, live_fleet

pytestmark = [pytest.mark.end_to_end, pytest.mark.slow, pytest.mark.timeout(400)]
DEVICE = "device-1"


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    with live_fleet(tmp_path, devices=1) as made:
        yield made


def restart_on(fleet: Fleet, backup: Path) -> None:
    fleet.stage.troupe.stop("server")
    shutil.rmtree(fleet.stage.server_dir)
    shutil.copytree(backup, fleet.stage.server_dir)
    fleet.start_server()
    fleet.wait_ready()


def has_alert(fleet: Fleet) -> bool:
    return any(alert["what"] == "server_restored" and alert["severity"] == "critical" for alert in fleet.stage.call().get_all("/alerts"))


def test_a_restored_server_is_told_and_followed_again_by_a_live_device(fleet: Fleet, tmp_path: Path) -> None:
    fleet.deploy(fleet.publish(), DEVICE)
    backup = tmp_path / "backup"
    fleet.stage.troupe.stop("server")
    shutil.copytree(fleet.stage.server_dir, backup)
    fleet.start_server()
    fleet.wait_ready()
    fleet.deploy(fleet.publish(), DEVICE)
    proven = fleet.machine(DEVICE).proven
    assert proven is not None

    restart_on(fleet, backup)
    fleet.wait("the alert", lambda: has_alert(fleet))
    assert fleet.machine(DEVICE).proven == proven  # it keeps what it has, whatever the backup says
    recovered = fleet.covey("keys", "recover", "--json")
    assert recovered.returncode == 0, recovered.stderr
    assert json.loads(recovered.stdout)["devices"] == 1

    release = fleet.publish()
    fleet.deploy(release, DEVICE)
    assert fleet.device(DEVICE)["serving_version"] == release["version"]
