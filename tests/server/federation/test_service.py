"""Tasks and runs: what is made, refused, sent and noted."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from fastapi.testclient import TestClient
from tests.fakes.server_parts import TestParts, add_device, api_client, live_events, make_parts, sent_messages

from covey_contract.codec import decode, decode_order, digest_of
from covey_contract.ids import DeviceId
from covey_contract.messages import InviteToRun, Outcome, Reply, Signed, StopRun
from covey_server.access.models import Role
from covey_server.federation import api, handlers, service
from covey_server.federation.models import ParticipantState, RunState
from covey_server.privacy import service as ledger

CODE = "def build_model():\n    return None\n"
TASK = {"name": "digits", "purpose": "research", "dataset": "digits", "labels": ["0", "1"], "code": CODE}
PLAN = {"level": "record", "noise_multiplier": 2.0, "clipping_norm": 1.0, "sample_rate": 0.25, "steps": 10, "delta": 1e-4}
RUN = {"task": "digits", "model": "digits", "rounds": 4, "plan": PLAN, "hyperparameters": {"learning_rate": 6.0}}


@pytest.fixture
def parts(tmp_path: Path) -> TestParts:
    made = make_parts(tmp_path)
    with made.db.begin() as session:
        for device in ("pi-1", "pi-2"):
            add_device(session, device, supernode_public_key="ssh-key")
        add_device(session, "no-key")
    return made


@pytest.fixture
def http(parts: TestParts) -> TestClient:
    client = api_client(parts, api.router, role=Role.OPERATOR)
    assert client.post("/tasks", json=TASK).status_code == 201
    return client


def orders(parts: TestParts, device: str) -> list[Any]:
    """Verified commands that wait for a device."""
    found = []
    for message in sent_messages(parts, f"covey/v1/d/{device}/down/command"):
        signed = decode(message.payload, Signed)
        Ed25519PublicKey.from_public_bytes(parts.director.public).verify(signed.signature, signed.payload)
        found.append(decode_order(signed))
    return found


def reply(parts: TestParts, device: str, outcome: Outcome, *, command: str = "", reason: str = "") -> None:
    ident = command or orders(parts, device)[0].id
    with parts.db.begin() as session:
        handlers.on_reply(parts, session, DeviceId(device), Reply(id=ident, outcome=outcome, at=1, reason=reason))


def test_a_task_is_stored_signed_as_a_target_and_named_by_its_digest(parts: TestParts, http: TestClient) -> None:
    digest = digest_of(CODE.encode())
    assert http.get("/tasks/digits").json()["digest"] == digest
    assert parts.repository.targets[f"tasks/digits/{digest}.py"] == CODE.encode()
    assert parts.blobs.read(digest) == CODE.encode()
    again = http.post("/tasks", json=TASK).json()
    assert [task["id"] for task in http.get("/tasks").json()["items"]] == [again["id"]]


@pytest.mark.parametrize(
    "fault", [{"code": "def ("}, {"code": ""}, {"name": "../x"}, {"name": "A"}, {"dataset": "a b"}, {"unknown": 1}, {"code": "x\x00"}]
)
def test_what_is_no_task_is_refused(http: TestClient, fault: dict[str, Any]) -> None:
    assert http.post("/tasks", json=TASK | fault).status_code == 422


def test_planning_says_what_it_would_cost_and_changes_nothing(parts: TestParts, http: TestClient) -> None:
    body = {"task": "digits", "rounds": 4, "plan": PLAN}
    found = http.post("/runs/plan", json=body).json()
    assert found["possible"]
    assert [p["participant"] for p in found["participants"]] == ["pi-1", "pi-2"]  # no-key cannot take part
    curve = found["participants"][0]["after_round"]
    assert curve == sorted(curve)
    assert curve[-1] == pytest.approx(found["epsilon"])
    refused = http.post("/runs/plan", json=body | {"max_epsilon": 1.0}).json()
    assert not refused["possible"]
    assert "above the limit of 1" in refused["refusals"][0]
    assert http.get("/runs").json()["items"] == []
    with parts.db.read() as session:
        assert ledger.list_events(session) == []


def test_a_run_that_cannot_work_is_not_created(http: TestClient) -> None:
    answer = http.post("/runs", json=RUN | {"max_epsilon": 1.0})
    assert answer.status_code == 422
    assert "above the limit" in answer.json()["detail"]
    assert http.get("/runs").json()["items"] == []


@pytest.mark.parametrize(
    ("fault", "status"),
    [
        ({"task": "nothing"}, 404),
        ({"participants": ["stranger"]}, 404),
        ({"participants": ["pi-1"]}, 422),
        ({"held_out": "/no/such/file.npz"}, 422),
        ({"rounds": 0}, 422),
        ({"plan": PLAN | {"noise_multiplier": "NaN"}}, 422),
        ({"plan": PLAN | {"level": "none"}}, 422),
        ({"typo": 1}, 422),
    ],
)
def test_a_faulty_run_is_refused(http: TestClient, fault: dict[str, Any], status: int) -> None:
    assert http.post("/runs", json=RUN | fault).status_code == status


def test_a_held_out_file_that_is_none_is_refused_and_a_good_one_is_copied(parts: TestParts, http: TestClient, tmp_path: Path) -> None:
    bad, good = tmp_path / "bad.npz", tmp_path / "good.npz"
    bad.write_text("not an archive")
    np.savez(good, x=np.zeros(1), y=np.zeros(1))
    assert http.post("/runs", json=RUN | {"held_out": str(bad)}).status_code == 422
    run = http.post("/runs", json=RUN | {"held_out": str(good)}).json()
    good.unlink()
    with parts.db.read() as session:
        assert Path(service.get_run(session, run["id"]).held_out).exists()


def test_starting_invites_every_participant_with_a_signed_order(parts: TestParts, http: TestClient) -> None:
    run = http.post("/runs", json=RUN).json()
    assert run["state"] == "inviting"
    (order,) = orders(parts, "pi-1")
    assert isinstance(order, InviteToRun)
    assert (order.run, order.rounds, order.dataset, order.plan.noise_multiplier) == (run["id"], 4, "digits", 2.0)
    assert order.task_digest == digest_of(CODE.encode())
    assert order.fleet_api == f"127.0.0.1:{parts.settings.edge.port}"
    assert order.hyperparameters == {"learning_rate": 6.0}
    assert orders(parts, "no-key") == []
    assert live_events(parts, "run.changed")


def test_a_run_is_started_once(http: TestClient) -> None:
    run = http.post("/runs", json=RUN | {"start": False}).json()
    assert run["state"] == "planned"
    assert http.post(f"/runs/{run['id']}/start").json()["state"] == "inviting"
    assert http.post(f"/runs/{run['id']}/start").status_code == 409


def test_replies_are_noted_once_and_only_from_the_invited(parts: TestParts, http: TestClient) -> None:
    run = http.post("/runs", json=RUN).json()["id"]
    reply(parts, "pi-1", Outcome.ACCEPTED)
    reply(parts, "pi-1", Outcome.REFUSED, reason="changed my mind")  # resent or late: the first answer stands
    reply(parts, "pi-2", Outcome.ACCEPTED, command=orders(parts, "pi-1")[0].id)  # somebody else's command
    reply(parts, "pi-2", Outcome.REFUSED, reason="over budget")
    members = {m["device_id"]: (m["state"], m["reason"]) for m in http.get(f"/runs/{run}").json()["participants"]}
    assert members == {"pi-1": (ParticipantState.ACCEPTED, ""), "pi-2": (ParticipantState.REFUSED, "over budget")}


def test_stopping_ends_a_run_once_and_tells_who_takes_part(parts: TestParts, http: TestClient) -> None:
    run = http.post("/runs", json=RUN).json()["id"]
    reply(parts, "pi-2", Outcome.REFUSED)
    assert http.post(f"/runs/{run}/stop").json()["state"] == "stopped"
    assert http.post(f"/runs/{run}/stop").status_code == 409
    with parts.db.begin() as session:
        assert service.dismiss_participants(session, service.get_run(session, run), director=parts.director, now=parts.clock()) == 1
    assert isinstance(orders(parts, "pi-1")[-1], StopRun)
    assert not any(isinstance(order, StopRun) for order in orders(parts, "pi-2"))


def test_an_ended_run_stays_as_it_ended(parts: TestParts, http: TestClient) -> None:
    run = http.post("/runs", json=RUN).json()["id"]
    http.post(f"/runs/{run}/stop")
    with parts.db.begin() as session:
        service.finish_run(session, run, RunState.COMPLETED, reason="late", now=parts.clock())
    assert http.get(f"/runs/{run}").json()["state"] == "stopped"


def test_references_stand_beside_a_run(http: TestClient) -> None:
    run = http.post("/runs", json=RUN).json()["id"]
    assert http.post(f"/runs/{run}/references", json={"name": "central", "accuracies": [0.1, 0.9]}).status_code == 200
    assert http.get(f"/runs/{run}").json()["references"] == {"central": [0.1, 0.9]}
    for bad in ([], [1.5], ["x"]):
        assert http.post(f"/runs/{run}/references", json={"name": "central", "accuracies": bad}).status_code == 422


def test_runs_come_in_pages_newest_first(parts: TestParts, http: TestClient) -> None:
    made = []
    for _ in range(3):
        made.append(http.post("/runs", json=RUN).json()["id"])
        parts.clock.advance(seconds=1)
    first = http.get("/runs", params={"limit": 2}).json()
    second = http.get("/runs", params={"limit": 2, "cursor": first["next"]}).json()
    assert [r["id"] for r in first["items"] + second["items"]] == list(reversed(made))
    assert second["next"] is None


def test_viewers_read_and_only_operators_act(parts: TestParts, http: TestClient) -> None:
    run = http.post("/runs", json=RUN).json()["id"]
    viewer = api_client(parts, api.router, role=Role.VIEWER)
    assert viewer.get(f"/runs/{run}/rounds").json() == []
    assert viewer.get(f"/runs/{run}").headers["ETag"]
    for path, body in ((f"/runs/{run}/stop", None), ("/runs", RUN), ("/tasks", TASK)):
        assert viewer.post(path, json=body).status_code == 403
    assert viewer.get("/runs/none").status_code == 404
    assert viewer.get("/runs/none/rounds").status_code == 404


def test_an_invitation_holds_as_long_as_the_run_can_last(parts: TestParts, http: TestClient) -> None:
    http.post("/runs", json=RUN)
    lasts = timedelta(milliseconds=orders(parts, "pi-1")[0].expires_at) - timedelta(seconds=parts.clock().timestamp())
    flower = parts.settings.flower
    assert lasts.total_seconds() == pytest.approx(flower.invite_timeout_s + 5 * flower.round_timeout_s, abs=1)
