"""An upgrade that is taken back: this agent lives on the state that a newer one left, and loses nothing of it."""

import json
import sqlite3
from pathlib import Path

import pytest
from tests.fakes.agent.outside import World, desired

from covey_agent.adapters.store_sqlite import LAYOUT, open_database
from covey_agent.core.jobs import DeployRefused, InferReady, Probed, Verified
from covey_agent.errors import StoreError
from covey_agent.versions import Trial, Versions, begin_trial, fall_back
from covey_agent.versions_file import VersionsFile
from covey_contract.messages import Capabilities, DeploymentState, Priority

TABLES = ("value", "counter", "reply", "ledger", "reading", "lost")


def upgrade_state(path: Path) -> None:
    """What a later agent of the same layout may do: add columns with defaults, tables, and fields within stored values."""
    connection = sqlite3.connect(path)
    for table in TABLES:
        connection.execute(f"ALTER TABLE {table} ADD COLUMN later TEXT DEFAULT 'x'")
        connection.execute(f"ALTER TABLE {table} ADD COLUMN counted INTEGER NOT NULL DEFAULT 7")
    connection.execute("CREATE TABLE of_later (key TEXT PRIMARY KEY)")
    for key, data in connection.execute("SELECT key, data FROM value").fetchall():
        try:
            content = json.loads(data)
        except ValueError:
            continue
        if isinstance(content, dict):
            connection.execute("UPDATE value SET data = ? WHERE key = ?", (json.dumps({**content, "later": {"a": 1}}).encode(), key))
    connection.commit()
    connection.close()


def test_it_goes_on_where_the_newer_one_stopped(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.fill_slot("A", 1)
    (world.state_dir / "slots" / "proven.json").write_text('{"committed": "A", "quarantine": [], "later": 1}')
    life = world.boot()
    life.speak("infer", InferReady(load_ms=1))
    life.speak("probe", Probed(capabilities=Capabilities(), at=1))
    life.order(desired(5, 5))
    life.speak("deploy", DeployRefused(reason="no variant fits"))
    life.speak("verify", Verified())
    life.agent._hub.readings.add("alarm", {"what": "test"}, priority=Priority.ALARM)
    life.database.close()
    upgrade_state(world.state_dir / "state.db")

    life = world.boot()
    life.speak("infer", InferReady(load_ms=1))
    life.speak("probe", Probed(capabilities=Capabilities(), at=2))
    life.connect()
    report = life.reported()
    assert (report.desired_generation, report.serving, report.active_slot) == (5, True, "A")
    assert report.deployment is not None
    assert report.deployment.state is DeploymentState.REFUSED
    assert any(reading.values.get("what") == "test" for batch in life.batches() for reading in batch.readings)
    life.order(desired(6, 6))  # and every kind of write works
    life.speak("deploy", DeployRefused(reason="no variant fits either"))
    life.speak("verify", Verified())
    assert life.reported().desired_generation == 6
    life.agent._hub.readings.add("alarm", {"what": "after"}, priority=Priority.ALARM)
    assert not list(world.state_dir.glob("state.db.unreadable*"))


def test_a_later_layout_is_refused_and_left_alone(tmp_path: Path) -> None:
    open_database(tmp_path / "state.db").close()
    connection = sqlite3.connect(tmp_path / "state.db")
    connection.execute(f"PRAGMA user_version={LAYOUT + 1}")
    connection.close()
    with pytest.raises(StoreError, match="written by a newer agent"):
        open_database(tmp_path / "state.db")
    assert not list(tmp_path.glob("*.unreadable*"))


def test_the_server_is_told_once_that_an_upgrade_failed(tmp_path: Path) -> None:
    world = World(tmp_path)
    file = VersionsFile(world.state_dir)
    file.change(lambda versions: begin_trial(versions, "9.9.9", was_connected=True))
    file.change(lambda versions: fall_back(versions, "it ended with exit code 1", at=5))

    def alarms() -> list[object]:
        life = world.boot()
        life.connect()
        life.advance(1.0)
        told: list[object] = [reading.values["detail"] for batch in life.batches() for reading in batch.readings if reading.kind == "alarm"]
        life.database.close()
        return told

    assert alarms() == ["the upgrade of the agent to 9.9.9 failed: it ended with exit code 1"]
    assert len(alarms()) == 1, "the same reading again, since nobody acknowledged it, and not a second one"


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{", b'{"current": 5}', b'{"failed": 1}', b'{"current": "5", "trial": 3}', b'{"trial": {"who": 1}}', b"\xff"]
)
def test_an_unreadable_file_means_the_first_installation(tmp_path: Path, content: bytes) -> None:
    file = VersionsFile(tmp_path)
    file.folder.mkdir()
    (file.folder / "versions.json").write_bytes(content)
    assert file.load() == Versions()


def test_what_a_later_version_adds_to_the_file_is_no_obstacle(tmp_path: Path) -> None:
    file = VersionsFile(tmp_path)
    file.folder.mkdir()
    content = {"current": "2", "later": 1, "trial": {"previous": "1", "starts": 1, "later": 2}, "failed": {}}
    (file.folder / "versions.json").write_text(json.dumps(content))
    assert file.load() == Versions(current="2", trial=Trial(previous="1", starts=1))
