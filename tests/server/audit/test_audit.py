"""The record of who did what."""

from pathlib import Path

import pytest
from sqlmodel import select
from tests.fakes.server_parts import TestParts, api_client, enrol, make_parts

from covey_server.access.models import Role
from covey_server.audit.models import AuditEvent


@pytest.fixture
def parts(tmp_path: Path) -> TestParts:
    return make_parts(tmp_path)


def test_acts_are_listed_newest_first_and_filtered(parts: TestParts) -> None:
    client = api_client(parts)
    enrol(parts, "cam-1")
    client.patch("/api/v1/devices/cam-1", json={"labels": {"site": "lyon"}})
    client.delete("/api/v1/devices/cam-1")

    def actions(**query: str) -> list[str]:
        return [event["action"] for event in client.get("/api/v1/audit", params=query).json()["items"]]

    assert actions() == ["device.revoked", "device.labelled", "device.enrolled", "device.invited", "token.created"]
    assert actions(action="token") == ["token.created"]
    assert actions(action="device.revoked") == ["device.revoked"]
    assert actions(action="dev") == []
    assert actions(actor="device:cam-1") == ["device.enrolled"]
    assert actions(subject="cam-9") == []


def test_pages_end(parts: TestParts) -> None:
    client = api_client(parts)
    enrol(parts, "cam-1")
    first = client.get("/api/v1/audit", params={"limit": 2}).json()
    second = client.get("/api/v1/audit", params={"limit": 2, "cursor": first["next"]}).json()
    assert (len(first["items"]), len(second["items"]), second["next"]) == (2, 1, None)


def test_no_secret_is_in_the_record(parts: TestParts) -> None:
    client = api_client(parts)
    token = client.post("/api/v1/tokens", json={"name": "ci"}).json()["token"]
    client.post("/api/v1/users", json={"name": "bob", "password": "correct horse"})
    client.patch("/api/v1/users/bob", json={"password": "another horse"})
    invitation = client.post("/api/v1/invitations", json={"device": "cam-1"}).json()["token"]
    with parts.db.read() as session:
        record = " ".join(event.model_dump_json() for event in session.exec(select(AuditEvent)))
    for secret in (token, "horse", invitation):
        assert secret not in record


def test_a_viewer_does_not_read_the_record(parts: TestParts) -> None:
    assert api_client(parts, role=Role.VIEWER).get("/api/v1/audit").status_code == 403


def test_the_record_cannot_be_changed_over_the_api(parts: TestParts) -> None:
    client = api_client(parts)
    for method in ("POST", "PATCH", "PUT", "DELETE"):
        assert client.request(method, "/api/v1/audit").status_code == 405
