"""Devices and invitations over REST: pages, filters, ETags, repetition, roles, bad input."""

from pathlib import Path

import pytest
from sqlmodel import select
from tests.fakes.server_parts import TestParts, add_device, api_client, enrol, make_app, make_parts

from covey_server.access.models import IdempotencyKey, Role
from covey_server.devices.invitation_token import read_token
from covey_server.devices.models import Invitation
from covey_server.errors import UnavailableError


@pytest.fixture
def parts(tmp_path: Path) -> TestParts:
    return make_parts(tmp_path)


def test_every_path_needs_a_token(parts: TestParts) -> None:
    client = api_client(parts, role=None)
    for route, operations in make_app(parts).openapi()["paths"].items():
        if route.startswith("/edge/"):
            continue
        for method in operations:
            path = route.format(device="cam-1", invitation="x", token_id="x", name="x", alert=1)
            answer = client.request(method.upper(), path, json={} if method in {"post", "patch"} else None)
            assert answer.status_code == 401, f"{method} {route}"
            assert answer.headers["www-authenticate"] == "Bearer"


def test_every_operation_is_described(parts: TestParts) -> None:
    for route, operations in make_app(parts).openapi()["paths"].items():
        for method, operation in operations.items():
            assert operation.get("summary"), f"{method} {route}"
            assert operation.get("description"), f"{method} {route}"
            if not route.startswith("/edge/"):
                assert operation["security"], f"{method} {route}"


def test_pages_follow_each_other_to_the_end(parts: TestParts) -> None:
    client = api_client(parts)
    with parts.db.begin() as session:
        for number in range(5):
            add_device(session, f"cam-{number}")
    seen: list[str] = []
    cursor: str | None = None
    for _ in range(4):
        page = client.get("/api/v1/devices", params={"limit": 2, **({"cursor": cursor} if cursor else {})}).json()
        seen += [device["id"] for device in page["items"]]
        cursor = page["next"]
        if cursor is None:
            break
    assert seen == [f"cam-{number}" for number in range(5)]


@pytest.mark.parametrize(
    "query",
    ["cursor=nonsense", "cursor=WzFd", "cursor=W10", "cursor=%C3%BC", "limit=0", "limit=201", "label=site", "presence=x", "profile=x"],
)
def test_faulty_queries_are_refused(parts: TestParts, query: str) -> None:
    answer = api_client(parts).get(f"/api/v1/devices?{query}")
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"


def test_filters_narrow_the_list(parts: TestParts) -> None:
    client = api_client(parts)
    enrol(parts, "cam-1", labels={"site": "lyon"})
    enrol(parts, "hospital", profile="partner")
    for query, expected in [
        ("label=site=lyon", ["cam-1"]),
        ("profile=partner", ["hospital"]),
        ("text=hosp", ["hospital"]),
        ("state=revoked", []),
    ]:
        assert [device["id"] for device in client.get(f"/api/v1/devices?{query}").json()["items"]] == expected


@pytest.mark.parametrize("device", ["CAM", "cam+1", "%2B", "x" * 65, "cam-1%0A", "..%2Fcam-1"])
def test_what_is_no_device_id_is_refused(parts: TestParts, device: str) -> None:
    enrol(parts, "cam-1")
    assert api_client(parts).get(f"/api/v1/devices/{device}").status_code in {404, 422}


def test_an_unknown_device_is_not_found(parts: TestParts) -> None:
    answer = api_client(parts).get("/api/v1/devices/cam-9")
    assert (answer.status_code, answer.json()["detail"]) == (404, "there is no device cam-9")


def test_an_unchanged_device_is_not_sent_again(parts: TestParts) -> None:
    client = api_client(parts)
    enrol(parts, "cam-1")
    etag = client.get("/api/v1/devices/cam-1").headers["etag"]
    assert client.get("/api/v1/devices/cam-1", headers={"If-None-Match": etag}).status_code == 304
    client.patch("/api/v1/devices/cam-1", json={"labels": {"site": "lyon"}})
    assert client.get("/api/v1/devices/cam-1", headers={"If-None-Match": etag}).status_code == 200


def test_labels_change_only_if_the_device_is_as_it_was_read(parts: TestParts) -> None:
    client = api_client(parts, role=Role.OPERATOR)
    enrol(parts, "cam-1")
    etag = client.get("/api/v1/devices/cam-1").headers["etag"]
    first = client.patch("/api/v1/devices/cam-1", json={"labels": {"site": "lyon"}}, headers={"If-Match": etag})
    assert (first.status_code, first.json()["labels"]) == (200, {"site": "lyon"})
    second = client.patch("/api/v1/devices/cam-1", json={"labels": {"site": "nice"}}, headers={"If-Match": etag})
    assert second.status_code == 412
    assert client.get("/api/v1/devices/cam-1").json()["labels"] == {"site": "lyon"}


@pytest.mark.parametrize("body", [{"labels": {"site": 5}}, {"labels": {}, "more": 1}, {}, {"labels": {"Site": "x"}}, []])
def test_faulty_label_changes_are_refused(parts: TestParts, body: object) -> None:
    enrol(parts, "cam-1")
    assert api_client(parts).patch("/api/v1/devices/cam-1", json=body).status_code == 422


def test_an_invitation_is_made_shown_and_withdrawn(parts: TestParts) -> None:
    client = api_client(parts, role=Role.OPERATOR)
    made = client.post("/api/v1/invitations", json={"device": "cam-1", "labels": {"site": "lyon"}})
    assert made.status_code == 201
    assert read_token(made.json()["token"])["id"] == "cam-1"
    listed = client.get("/api/v1/invitations").json()["items"]
    assert [(item["device_id"], item["used_at"], "token" in item) for item in listed] == [("cam-1", None, False)]
    assert client.delete(f"/api/v1/invitations/{listed[0]['id']}").json()["withdrawn_at"] is not None
    assert client.delete("/api/v1/invitations/none").status_code == 404


@pytest.mark.parametrize(
    "body",
    [
        {"device": "a/b"},
        {"device": "+"},
        {"device": ".."},
        {"device": ""},
        {"device": "x" * 65},
        {"device": "cam-1\n"},
        {"device": "covey-server"},
        {"device": "cam-1", "profile": "boss"},
        {"device": "cam-1", "ttl_hours": 0},
        {"device": "cam-1", "ttl_hours": 721},
        {"device": "cam-1", "unknown": True},
        {},
    ],
)
def test_faulty_invitations_are_refused_and_leave_nothing(parts: TestParts, body: dict[str, object]) -> None:
    client = api_client(parts)
    assert client.post("/api/v1/invitations", json=body).status_code == 422
    assert client.get("/api/v1/invitations").json()["items"] == []


def test_a_repeated_invitation_is_answered_again_without_its_secret(parts: TestParts) -> None:
    client = api_client(parts)
    body = {"device": "cam-1"}
    first = client.post("/api/v1/invitations", json=body, headers={"Idempotency-Key": "k1"})
    again = client.post("/api/v1/invitations", json=body, headers={"Idempotency-Key": "k1"})
    assert (first.status_code, again.status_code) == (201, 201)
    assert again.headers["idempotency-replayed"] == "true"
    assert again.json() == first.json() | {"token": None}
    with parts.db.read() as session:
        assert len(session.exec(select(Invitation)).all()) == 1
        stored = session.exec(select(IdempotencyKey)).one()
    assert first.json()["token"].encode() not in stored.body


def test_a_key_that_is_used_for_another_request_is_refused(parts: TestParts) -> None:
    client = api_client(parts)
    client.post("/api/v1/invitations", json={"device": "cam-1"}, headers={"Idempotency-Key": "k1"})
    assert client.post("/api/v1/invitations", json={"device": "cam-2"}, headers={"Idempotency-Key": "k1"}).status_code == 409
    assert client.get("/api/v1/invitations").json()["items"][0]["device_id"] == "cam-1"


def test_a_key_of_a_failed_request_can_be_used_again(parts: TestParts) -> None:
    client = api_client(parts)
    assert client.post("/api/v1/invitations", json={"device": "+"}, headers={"Idempotency-Key": "k1"}).status_code == 422
    assert client.post("/api/v1/invitations", json={"device": "cam-1"}, headers={"Idempotency-Key": "k1"}).status_code == 201


def test_revoking_ends_broker_rights(parts: TestParts) -> None:
    enrol(parts, "cam-1")
    enrol(parts, "cam-2")
    answer = api_client(parts).delete("/api/v1/devices/cam-1")
    assert (answer.status_code, answer.json()["state"]) == (200, "revoked")
    assert parts.permissions.allowed == ["cam-2"]


def test_an_operator_hears_when_the_broker_did_not_take_a_revocation(parts: TestParts) -> None:
    enrol(parts, "cam-1")
    parts.permissions.error = UnavailableError("the broker did not take its new table")
    answer = api_client(parts).delete("/api/v1/devices/cam-1")
    assert (answer.status_code, "broker" in answer.json()["detail"]) == (503, True)
    assert api_client(parts).get("/api/v1/devices/cam-1").json()["state"] == "revoked"  # and is applied again later


@pytest.mark.parametrize(
    ("role", "method", "path", "status"),
    [
        (Role.VIEWER, "GET", "/api/v1/devices", 200),
        (Role.VIEWER, "GET", "/api/v1/invitations", 403),
        (Role.VIEWER, "POST", "/api/v1/invitations", 403),
        (Role.VIEWER, "PATCH", "/api/v1/devices/cam-1", 403),
        (Role.OPERATOR, "POST", "/api/v1/invitations", 201),
        (Role.OPERATOR, "DELETE", "/api/v1/devices/cam-1", 403),
        (Role.ADMIN, "DELETE", "/api/v1/devices/cam-1", 200),
    ],
)
def test_roles_bound_what_one_may_do(parts: TestParts, role: Role, method: str, path: str, status: int) -> None:
    enrol(parts, "cam-1")
    body = {"POST": {"device": "cam-2"}, "PATCH": {"labels": {}}}.get(method)
    assert api_client(parts, role=role).request(method, path, json=body).status_code == status
