"""A server whose database and metadata are an old backup, under a live device: told by an alert, put right by `covey keys recover`."""

import json
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from tests.end_to_end.live_fleet import Fleet, live_fleet

pytestmark = [pytest.mark.end_to_end, pytest.mark.slow, pytest.mark.timeout(400)]
DEVICE = "device-1"


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    with live_fleet(tmp_path, devices=1) as made:
        yield made


def back_up(fleet: Fleet, to: Path) -> None:
    """As docs/operations.md says, while the server runs."""
    shutil.copytree(fleet.stage.server_dir / "tuf", to / "tuf")
    with closing(sqlite3.connect(fleet.stage.server_dir / "fleet.db")) as live, closing(sqlite3.connect(to / "fleet.db")) as copy:
        live.backup(copy)


def restart_on(fleet: Fleet, backup: Path) -> None:
    fleet.stage.troupe.stop("server")
    folder = fleet.stage.server_dir
    shutil.rmtree(folder / "tuf")
    shutil.copytree(backup / "tuf", folder / "tuf")
    for leftover in folder.glob("fleet.db*"):
        leftover.unlink()
    shutil.copy(backup / "fleet.db", folder / "fleet.db")
    fleet.start_server()
    fleet.wait_ready()


def has_alert(fleet: Fleet) -> bool:
    return any(alert["what"] == "server_restored" and alert["severity"] == "critical" for alert in fleet.stage.call().get_all("/alerts"))


def test_a_restored_server_is_told_and_followed_again_by_a_live_device(fleet: Fleet, tmp_path: Path) -> None:
    fleet.deploy(fleet.publish(), DEVICE)
    backup = tmp_path / "backup"
    back_up(fleet, backup)
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
