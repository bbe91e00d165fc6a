"""A server restored from an old backup, judged by the agent's own trust client: refused, told to operators, and believed again."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest
from sqlmodel import Session, select
from tests.server.releases.bench import Bench, make_bench
from typer.testing import CliRunner

from covey_agent.core.plan import is_newer
from covey_agent.workers.errors import UntrustedError
from covey_agent.workers.trust import TrustedMetadata
from covey_contract.codec import decode
from covey_contract.ids import DeviceId
from covey_contract.limits import METADATA_PART_BYTES
from covey_contract.messages import Desired, MetadataPart, Signed
from covey_server import migrate
from covey_server.cli import keys
from covey_server.db import Database
from covey_server.devices.models import Device
from covey_server.releases.director import FileDirector
from covey_server.releases.repository import TufRepository
from covey_server.rollouts.desired import MOST_GENERATION, order_desired
from covey_server.rollouts.handlers import on_reported
from covey_server.rollouts.models import DesiredState
from covey_server.rollouts.restored import WHAT
from covey_server.triggers.models import Alert, Severity
from covey_server.triggers.service import acknowledge_alert

PI = DeviceId("pi-1")


class Fleet:
    """A server with a real repository, director and database; a device with its real trust client and its floor of generations."""

    def __init__(self, folder: Path) -> None:
        self.bench: Bench = make_bench(folder / "work")
        self.bench.clock.now = datetime.now(UTC)  # TUF's expiry is compared with the machine's clock
        self.settings = self.bench.parts.settings
        self.repository = TufRepository.create(self.settings, self.bench.clock(), clock=self.bench.clock)
        self.director = FileDirector.create(self.settings, self.repository)
        self.database = Database(self.settings.resolved_database_url)  # where `covey keys` looks for it
        migrate.upgrade(self.database)
        self.parts = replace(self.bench.parts, db=self.database, repository=self.repository, director=self.director)
        self.bench.parts = self.parts
        self.bench.add_devices(PI)
        self.state_dir = folder / "device"
        (self.state_dir / "tuf").mkdir(parents=True)
        (self.state_dir / "tuf" / "root.json").write_bytes(self.repository.newest_root())
        self.floor = 0

    def order(self) -> Desired:
        """The server orders, the device hears it: obeyed if it is newer than its floor and its child verifies it."""
        with self.parts.db.begin() as session:
            row = order_desired(
                session,
                session.get_one(Device, PI),
                director=self.director,
                now=self.bench.clock.advance(1),
                release=None,
                release_id=None,
                rollout_id=None,
                deployment="",
                probation_s=1.0,
            )
            signed = decode(row.signed, Signed)
        return self.obey(signed)

    def obey(self, signed: Signed) -> Desired:
        said = decode(signed.payload, Desired)
        if not is_newer(said.generation, floor=self.floor, candidate=0):
            raise UntrustedError(f"generation {said.generation} is not above {self.floor}")
        trusted = TrustedMetadata(self.state_dir, self.fetch_part)
        trusted.refresh()
        order = trusted.verify_order(signed, device=PI, now=self.bench.clock(), min_generation=self.floor)
        assert isinstance(order, Desired)
        self.floor = order.generation
        return order

    def fetch_part(self, name: str, part: int) -> MetadataPart:
        data = self.repository.read_file(name)
        if data is None:
            return MetadataPart(id="w", part=part, parts=0)
        parts = max(-(-len(data) // METADATA_PART_BYTES), 1)
        return MetadataPart(id="w", part=part, parts=parts, data=data[part * METADATA_PART_BYTES : (part + 1) * METADATA_PART_BYTES])

    def publish(self, content: bytes) -> None:
        self.repository.add_target("x.json", content)

    def report(self, generation: int | None = None) -> list[Alert]:
        """The device reports; the open alerts after it."""
        with self.parts.db.begin() as session:
            acted = self.floor if generation is None else generation
            on_reported(self.parts, session, PI, self.bench.device_reports(session, PI, None, desired_generation=acted))
            return self.alerts(session)

    @staticmethod
    def alerts(session: Session) -> list[Alert]:
        found = session.exec(select(Alert).where(Alert.what == WHAT)).all()
        return [alert for alert in found if alert.acknowledged_at is None]

    def acknowledge(self) -> None:
        with self.parts.db.begin() as session:
            for alert in self.alerts(session):
                assert alert.id is not None
                acknowledge_alert(session, alert.id, actor="user:x", now=self.bench.clock())

    def back_up(self, to: Path) -> DesiredState:
        shutil.copytree(self.settings.path("tuf"), to)
        with self.parts.db.read() as session:
            return session.get_one(DesiredState, PI).model_copy()

    def restore(self, files: Path, row: DesiredState) -> None:
        shutil.rmtree(self.settings.path("tuf"))
        shutil.copytree(files, self.settings.path("tuf"))
        with self.parts.db.begin() as session:
            now = session.get_one(DesiredState, PI)
            now.generation, now.signed = row.generation, row.signed
            device = session.get_one(Device, PI)
            device.reported = device.reported | {"desired_generation": row.generation}


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    made = Fleet(tmp_path)
    yield made
    made.database.close()


def test_a_restored_server_is_refused_told_and_believed_again(fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fleet.order()
    row = fleet.back_up(tmp_path / "backup")
    for number in range(5):
        fleet.publish(b"%d" % number)
        fleet.order()
    assert fleet.report() == []
    fleet.restore(tmp_path / "backup", row)

    with pytest.raises(UntrustedError, match="not above 6"):
        fleet.order()
    fleet.floor, floor = 0, fleet.floor  # even a device that forgot its floor is kept from going back by the metadata
    with pytest.raises(UntrustedError, match="cannot be trusted"):
        fleet.order()
    fleet.floor = floor
    (alert,) = fleet.report()
    assert (alert.severity, alert.device_id) == (Severity.CRITICAL, None)
    assert "covey keys recover" in alert.detail

    monkeypatch.setenv("COVEY_HOME", str(fleet.settings.work_dir))
    result = CliRunner().invoke(keys.app, ["recover", "--json"])
    assert result.exit_code == 0, result.output
    told = msgspec.json.decode(result.stdout)
    assert told["devices"] == 1
    assert told["timestamp"] > keys.RAISE_BY
    fleet.acknowledge()
    assert fleet.report() == []
    assert fleet.order().generation > keys.RAISE_BY
    fleet.publish(b"and goes on")
    fleet.order()
    assert fleet.report() == []


def test_recover_raises_above_a_device_that_has_not_reported_yet(fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fleet.order()
    row = fleet.back_up(tmp_path / "backup")
    for _ in range(3):
        fleet.order()
    fleet.restore(tmp_path / "backup", row)
    monkeypatch.setenv("COVEY_HOME", str(fleet.settings.work_dir))
    with fleet.database.read() as session:
        before = session.get_one(DesiredState, PI).signed
    assert CliRunner().invoke(keys.app, ["recover"]).exit_code == 0
    with fleet.database.read() as session:
        assert session.get_one(DesiredState, PI).signed == before  # nothing of the backup is ordered again
    assert fleet.order().generation > keys.RAISE_BY


@pytest.mark.parametrize(("acted", "alerts"), [(0, 0), (1, 0), (2, 1), (MOST_GENERATION + 1, 0)])
def test_only_a_device_that_is_ahead_is_told(fleet: Fleet, acted: int, alerts: int) -> None:
    fleet.order()
    assert len(fleet.report(acted)) == alerts
    assert len(fleet.report(acted)) == alerts  # and it stays one


def test_a_device_of_which_the_backup_knows_no_order_is_told(fleet: Fleet) -> None:
    assert fleet.report(0) == []
    assert len(fleet.report(3)) == 1
    fleet.floor = 3
    assert fleet.order().generation == 4
