"""The ledger: appended before, voided only by the participant's word, recomputed always."""

import math
from pathlib import Path
from typing import Any

import msgspec
import pytest
from sqlalchemy.exc import DatabaseError
from sqlmodel import col, delete, update
from tests.fakes.server_parts import TestParts, api_client, make_parts

from covey_contract.messages import PrivacyPlan
from covey_server import migrate
from covey_server.access.models import Role
from covey_server.db import Database
from covey_server.errors import ConflictError
from covey_server.privacy import api, service
from covey_server.privacy.accounting import Mechanism, epsilon_of
from covey_server.privacy.models import PrivacyEvent

PLAN = PrivacyPlan(level="record", noise_multiplier=1.7, clipping_norm=1.0, sample_rate=0.25, steps=10, delta=1e-4)


@pytest.fixture
def parts(tmp_path: Path) -> TestParts:
    return make_parts(tmp_path)


def charge(parts: TestParts, round_number: int, *, device: str = "pi-1", plan: PrivacyPlan = PLAN, run: str = "r1") -> PrivacyEvent:
    with parts.db.begin() as session:
        return service.append_charge(
            session, device=device, dataset="digits", run=run, round_number=round_number, plan=plan, at=parts.clock()
        )


def spent(parts: TestParts, device: str = "pi-1") -> float:
    with parts.db.read() as session:
        return service.epsilon(session, device=device, dataset="digits", delta=1e-4)


def test_epsilon_is_that_of_all_standing_charges_together(parts: TestParts) -> None:
    for number in (1, 2):
        charge(parts, number)
    charge(parts, 1, run="r2")
    charge(parts, 1, device="pi-2")
    assert spent(parts) == pytest.approx(epsilon_of([Mechanism(1.7, 0.25, 30)], delta=1e-4))
    assert spent(parts, "pi-2") == pytest.approx(epsilon_of([Mechanism(1.7, 0.25, 10)], delta=1e-4))
    assert spent(parts, "nobody") == 0


def test_a_round_is_charged_once_however_often_it_is_asked_for(parts: TestParts) -> None:
    assert charge(parts, 1).id == charge(parts, 1).id
    assert spent(parts) == pytest.approx(epsilon_of([Mechanism(1.7, 0.25, 10)], delta=1e-4))


def test_a_round_charged_for_one_plan_is_not_taken_for_another(parts: TestParts) -> None:
    charge(parts, 1)
    with pytest.raises(ConflictError, match="another plan"):
        charge(parts, 1, plan=msgspec.structs.replace(PLAN, noise_multiplier=0.5))


def test_a_void_takes_one_charge_back_once(parts: TestParts) -> None:
    first = charge(parts, 1)
    charge(parts, 2)
    with parts.db.begin() as session:
        service.append_void(session, first, reason="over budget", at=parts.clock())
    assert spent(parts) == pytest.approx(epsilon_of([Mechanism(1.7, 0.25, 10)], delta=1e-4))
    with pytest.raises(ConflictError, match="already"), parts.db.begin() as session:
        service.append_void(session, first, reason="again", at=parts.clock())


def test_a_void_cannot_be_voided_and_a_voided_round_can_be_charged_again(parts: TestParts) -> None:
    first = charge(parts, 1)
    with parts.db.begin() as session:
        void = service.append_void(session, first, reason="no", at=parts.clock())
    with pytest.raises(ConflictError), parts.db.begin() as session:
        service.append_void(session, void, reason="no", at=parts.clock())
    assert charge(parts, 1).id != first.id


def test_one_round_without_noise_ends_the_guarantee(parts: TestParts) -> None:
    charge(parts, 1)
    charge(parts, 2, plan=PrivacyPlan(level="none", noise_multiplier=0, clipping_norm=0, sample_rate=0.25, steps=10, delta=0))
    assert spent(parts) == math.inf


@pytest.mark.parametrize("statement", [delete(PrivacyEvent), update(PrivacyEvent).values(steps=0).where(col(PrivacyEvent.id) > 0)])
def test_the_database_itself_refuses_to_change_the_ledger(tmp_path: Path, statement: Any) -> None:
    database = Database(f"sqlite:///{tmp_path / 'fleet.db'}")
    migrate.upgrade(database)
    with database.begin() as session:
        service.append_charge(
            session, device="pi-1", dataset="digits", run="r1", round_number=1, plan=PLAN, at=make_parts(tmp_path / "x").clock()
        )
    with pytest.raises(DatabaseError, match="append-only"), database.begin() as session:
        session.exec(statement)
    database.close()


def test_the_api_shows_events_and_epsilon(parts: TestParts) -> None:
    first = charge(parts, 1)
    charge(parts, 1, device="pi-2")
    with parts.db.begin() as session:
        service.append_void(session, first, reason="over budget", at=parts.clock())
    http = api_client(parts, api.router, role=Role.VIEWER)
    events = http.get("/ledger", params={"device": "pi-1"}).json()["items"]
    assert [(e["kind"], e["round"], e["reason"]) for e in events] == [("charge", 1, ""), ("void", 1, "over budget")]
    page = http.get("/ledger", params={"limit": 2}).json()
    assert len(http.get("/ledger", params={"limit": 2, "cursor": page["next"]}).json()["items"]) == 1
    accounts = {a["device"]: a for a in http.get("/ledger/participants").json()["items"]}
    assert (accounts["pi-1"]["epsilon"], accounts["pi-1"]["rounds"], accounts["pi-1"]["voided"]) == (0, 0, 1)
    assert accounts["pi-2"]["epsilon"] == pytest.approx(epsilon_of([Mechanism(1.7, 0.25, 10)], delta=1e-4))
    looser = http.get("/ledger/participants", params={"delta": 1e-2}).json()["items"]
    assert looser[1]["epsilon"] < accounts["pi-2"]["epsilon"]


def test_the_api_needs_a_token_and_sound_parameters(parts: TestParts) -> None:
    assert api_client(parts, api.router, role=None).get("/ledger").status_code == 401
    http = api_client(parts, api.router, role=Role.VIEWER)
    assert http.get("/ledger/participants", params={"delta": 2}).status_code == 422
    assert http.get("/ledger", params={"cursor": "nonsense"}).status_code == 422
