"""Migrations: from empty to the models' schema, and from the example database; the ledger can only grow."""

import shutil
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError, OperationalError
from sqlmodel import select

from covey_server import migrate
from covey_server.db import Database
from covey_server.devices.models import Device
from covey_server.privacy.models import PrivacyEvent

EXAMPLE = Path(__file__).parents[2] / "fleet.db.example"


def _database(path: Path) -> Database:
    return Database(f"sqlite:///{path}")


def test_an_empty_database_gets_exactly_the_schema_of_the_models(tmp_path: Path) -> None:
    database = _database(tmp_path / "fleet.db")
    assert not migrate.is_current(database)
    migrate.upgrade(database)
    assert migrate.is_current(database)
    assert migrate.differences(database) == []


def test_upgrading_twice_changes_nothing(tmp_path: Path) -> None:
    database = _database(tmp_path / "fleet.db")
    migrate.upgrade(database)
    migrate.upgrade(database)
    assert migrate.is_current(database)


def test_the_example_database_migrates_and_holds_a_fleet(tmp_path: Path) -> None:
    shutil.copy(EXAMPLE, tmp_path / "fleet.db")
    database = _database(tmp_path / "fleet.db")
    migrate.upgrade(database)
    assert migrate.differences(database) == []
    with database.read() as session:
        assert len(session.exec(select(Device)).all()) >= 3
        assert session.exec(select(PrivacyEvent)).first() is not None


@pytest.mark.parametrize("statement", ["UPDATE privacy_events SET steps = 0", "DELETE FROM privacy_events", "DELETE FROM audit_events"])
def test_ledger_and_audit_rows_cannot_be_changed(tmp_path: Path, statement: str) -> None:
    database = _database(tmp_path / "fleet.db")
    migrate.upgrade(database)
    with database.begin() as session:
        session.add(
            PrivacyEvent(
                device_id="a",
                dataset="d",
                run_id="r",
                round=1,
                level="record",
                noise_multiplier=1.0,
                clipping_norm=1.0,
                sample_rate=0.1,
                steps=10,
                delta=1e-5,
            )
        )
        session.execute(text("INSERT INTO audit_events (at, actor, action, subject, detail) VALUES ('2026-01-01', 'a', 'b', 'c', '{}')"))
    with pytest.raises((IntegrityError, OperationalError), match="append-only"), database.begin() as session:
        session.execute(text(statement))
