"""The API's door by token and by cookie, and the management of tokens and users."""

from datetime import timedelta
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from sqlmodel import select
from tests.fakes.server_parts import START, TestParts, api_client, make_parts

from covey_server.access import service
from covey_server.access.idempotency import prune_idempotency_keys
from covey_server.access.logins import COOKIE_NAME, CSRF_HEADER, create_login
from covey_server.access.models import ApiToken, IdempotencyKey, Role
from covey_server.access.throttle import Throttle

PASSWORD = "correct horse"


@pytest.fixture
def parts(tmp_path: Path) -> TestParts:
    return make_parts(tmp_path)


def cookie_client(parts: TestParts) -> tuple[TestClient, str]:
    with parts.db.begin() as session:
        service.create_user(session, "alice", password=PASSWORD, role=Role.ADMIN, actor="system", now=START)
        secret, csrf = create_login(session, "alice", PASSWORD, START, throttle=Throttle())
    client = api_client(parts, role=None)
    client.cookies.set(COOKIE_NAME, secret)
    return client, csrf


@pytest.mark.parametrize("header", ["", "Bearer", "Bearer ", "Bearer wrong", "Basic YWxpY2U6eA==", "covey_x"])
def test_a_wrong_authorization_is_unauthenticated(parts: TestParts, header: str) -> None:
    answer = api_client(parts, role=None).get("/api/v1/whoami", headers={"Authorization": header})
    assert answer.status_code == 401
    assert answer.headers["content-type"] == "application/problem+json"


def test_a_token_tells_who_one_is(parts: TestParts) -> None:
    assert api_client(parts, role=Role.OPERATOR).get("/api/v1/whoami").json() == {"name": "token:test-operator", "role": "operator"}


def test_when_a_token_was_used_is_written_about_once_a_minute(parts: TestParts) -> None:
    client = api_client(parts)
    seen = []
    for seconds in (0, 30, 31):
        parts.clock.advance(seconds=seconds)
        client.get("/api/v1/whoami")
        with parts.db.read() as session:
            seen.append(session.exec(select(ApiToken)).one().last_used_at)
    assert seen == [START, START, START + timedelta(seconds=61)]


def test_by_cookie_one_may_read(parts: TestParts) -> None:
    client, _ = cookie_client(parts)
    assert client.get("/api/v1/whoami").json()["name"] == "user:alice"


@pytest.mark.parametrize("presented", [None, "", "wrong"])
def test_by_cookie_one_may_change_nothing_without_the_csrf_token(parts: TestParts, presented: str | None) -> None:
    client, _ = cookie_client(parts)
    headers = {} if presented is None else {CSRF_HEADER: presented}
    assert client.post("/api/v1/invitations", json={"device": "cam-1"}, headers=headers).status_code == 403
    assert client.delete("/api/v1/devices/cam-1", headers=headers).status_code == 403


def test_by_cookie_with_the_csrf_token_one_may(parts: TestParts) -> None:
    client, csrf = cookie_client(parts)
    assert client.post("/api/v1/invitations", json={"device": "cam-1"}, headers={CSRF_HEADER: csrf}).status_code == 201


def test_an_ended_login_is_unauthenticated(parts: TestParts) -> None:
    client, _ = cookie_client(parts)
    parts.clock.advance(hours=12)
    assert client.get("/api/v1/whoami").status_code == 401


def test_tokens_are_made_listed_and_revoked_without_showing_secrets_again(parts: TestParts) -> None:
    client = api_client(parts)
    made = client.post("/api/v1/tokens", json={"name": "ci", "role": "operator", "expires_in_days": 1})
    assert made.status_code == 201
    secret = made.json()["token"]
    holder = api_client(parts, role=None)
    holder.headers["Authorization"] = f"Bearer {secret}"
    assert holder.get("/api/v1/devices").status_code == 200
    assert secret not in client.get("/api/v1/tokens").text
    assert client.delete(f"/api/v1/tokens/{made.json()['id']}").status_code == 200
    assert holder.get("/api/v1/devices").status_code == 401


@pytest.mark.parametrize(
    "body",
    [
        {"name": "CI"},
        {"name": "ci", "role": "boss"},
        {"name": "ci", "expires_in_days": 0},
        {"name": "ci", "expires_in_days": -1},
        {"name": "ci", "secret": "mine"},
        {},
    ],
)
def test_faulty_tokens_are_refused(parts: TestParts, body: dict[str, object]) -> None:
    assert api_client(parts).post("/api/v1/tokens", json=body).status_code == 422


def test_users_are_added_changed_and_deleted_without_showing_their_passwords(parts: TestParts) -> None:
    client = api_client(parts)
    added = client.post("/api/v1/users", json={"name": "bob", "password": PASSWORD, "role": "viewer"})
    assert (added.status_code, added.json()["role"]) == (201, "viewer")
    assert "password" not in added.text
    assert "argon2" not in client.get("/api/v1/users").text
    assert client.post("/api/v1/users", json={"name": "bob", "password": PASSWORD}).status_code == 409
    assert client.patch("/api/v1/users/bob", json={"role": "operator"}).json()["role"] == "operator"
    assert client.patch("/api/v1/users/bob", json={"password": "short"}).status_code == 422
    assert client.delete("/api/v1/users/bob").status_code == 204
    assert client.delete("/api/v1/users/bob").status_code == 404


@pytest.mark.parametrize("role", [Role.VIEWER, Role.OPERATOR])
@pytest.mark.parametrize(("method", "path"), [("GET", "/api/v1/tokens"), ("GET", "/api/v1/users"), ("DELETE", "/api/v1/users/bob")])
def test_only_administrators_manage_access(parts: TestParts, role: Role, method: str, path: str) -> None:
    assert api_client(parts, role=role).request(method, path).status_code == 403


def test_idempotency_keys_of_two_callers_do_not_meet(parts: TestParts) -> None:
    for role in (Role.ADMIN, Role.OPERATOR):
        client = api_client(parts, role=role)
        answer = client.post("/api/v1/invitations", json={"device": f"cam-{role.value}"}, headers={"Idempotency-Key": "same"})
        assert answer.status_code == 201
        assert "idempotency-replayed" not in answer.headers


def test_old_idempotency_keys_are_forgotten(parts: TestParts) -> None:
    api_client(parts).post("/api/v1/invitations", json={"device": "cam-1"}, headers={"Idempotency-Key": "k"})
    for hours, left in ((23, 1), (25, 0)):
        with parts.db.begin() as session:
            prune_idempotency_keys(session, now=START + timedelta(hours=hours))
            assert len(session.exec(select(IdempotencyKey)).all()) == left
