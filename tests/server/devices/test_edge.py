"""Enrolment over HTTP, as a device and as a stranger does it."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from fastapi.testclient import TestClient
from tests.fakes.pki import make_csr, make_supernode_key
from tests.fakes.server_parts import TestParts, api_client, invite, make_app, make_parts

from covey_server.access.throttle import RateLimit
from covey_server.devices import edge
from covey_server.devices.invitation_token import read_token
from covey_server.errors import UnavailableError


@pytest.fixture
def parts(tmp_path: Path) -> TestParts:
    return make_parts(tmp_path)


@pytest.fixture
def stranger(parts: TestParts) -> TestClient:
    return api_client(parts, role=None)


def enrolment(parts: TestParts, invited: str = "cam-1", **changes: Any) -> dict[str, Any]:
    body = {
        "token": read_token(invite(parts, invited)[1])["t"],
        "device": invited,
        "csr": make_csr(invited),
        "supernode_public_key": make_supernode_key(),
        "profile": "device",
        "agent_version": "0.1.0",
    }
    return body | changes


def test_the_ca_certificate_is_open_and_matches_the_fingerprint(parts: TestParts, stranger: TestClient) -> None:
    answer = stranger.get("/edge/v1/ca.pem")
    assert answer.status_code == 200
    assert x509.load_pem_x509_certificate(answer.content)
    assert answer.text == parts.authority.ca_pem()


def test_an_invited_device_gets_all_it_needs_and_the_broker_knows_it_first(parts: TestParts, stranger: TestClient) -> None:
    answer = stranger.post("/edge/v1/enroll", json=enrolment(parts))
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert body["device"] == "cam-1"
    assert body["mqtt"] == {"host": "127.0.0.1", "port": 8883}
    assert body["fleet_api"] == "127.0.0.1:8701"
    assert body["ca"] == parts.authority.ca_pem()
    certificate = x509.load_pem_x509_certificate(body["certificate"].encode())
    assert certificate.not_valid_before_utc < datetime(2026, 1, 15, 12, 0, tzinfo=UTC) < certificate.not_valid_after_utc
    assert parts.permissions.allowed == ["cam-1"]


def test_a_broker_that_is_away_does_not_cost_a_device_its_invitation(parts: TestParts, stranger: TestClient) -> None:
    parts.permissions.error = UnavailableError("no broker")
    assert stranger.post("/edge/v1/enroll", json=enrolment(parts)).status_code == 200


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"token": "wrong"}, 401),
        ({"device": "cam-2"}, 403),
        ({"csr": "broken"}, 422),
        ({"csr": make_csr("cam-2")}, 422),
        ({"profile": "partner"}, 422),
        ({"device": "a/b"}, 422),
        ({"device": "+"}, 422),
        ({"device": ".."}, 422),
        ({"device": ""}, 422),
        ({"device": "x" * 65}, 422),
        ({"device": "cam-1\n"}, 422),
        ({"extra": 1}, 422),
        ({"token": 5}, 422),
        ({"csr": None}, 422),
    ],
)
def test_a_faulty_enrolment_is_a_problem_document(parts: TestParts, stranger: TestClient, changes: dict[str, Any], status: int) -> None:
    answer = stranger.post("/edge/v1/enroll", json=enrolment(parts, **changes))
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["detail"]
    assert parts.permissions.tables == []


def test_a_used_and_an_expired_token_are_told_apart(parts: TestParts, stranger: TestClient) -> None:
    body = enrolment(parts)
    stranger.post("/edge/v1/enroll", json=body)
    assert stranger.post("/edge/v1/enroll", json=body).status_code == 409
    late = enrolment(parts, "cam-2")
    parts.clock.advance(hours=2)
    answer = stranger.post("/edge/v1/enroll", json=late)
    assert (answer.status_code, "expired" in answer.json()["detail"]) == (403, True)


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b'"x"', b"\xff\xfe", b"[" * 60_000])
def test_what_is_no_enrolment_is_refused(stranger: TestClient, body: bytes) -> None:
    assert stranger.post("/edge/v1/enroll", content=body, headers={"content-type": "application/json"}).status_code == 422


def test_a_body_over_the_limit_is_refused(parts: TestParts, stranger: TestClient) -> None:
    body = json.dumps(enrolment(parts, agent_version="x" * edge.MAX_ENROL_BYTES))
    assert stranger.post("/edge/v1/enroll", content=body).status_code == 413


def test_one_address_may_try_only_so_often_and_is_told_when_to_come_back(parts: TestParts) -> None:
    app = make_app(parts)
    app.state.enrol_limit = RateLimit(burst=2, per_second=0.5)
    stranger = TestClient(app)
    answers = [stranger.post("/edge/v1/enroll", content=b"{}") for _ in range(3)]
    assert [answer.status_code for answer in answers] == [422, 422, 429]
    assert answers[2].headers["Retry-After"] == "2"
    parts.clock.advance(seconds=2)
    assert stranger.post("/edge/v1/enroll", content=b"{}").status_code == 422
