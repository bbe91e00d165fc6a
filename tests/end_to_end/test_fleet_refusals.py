"""What the API, the gate and the devices refuse: strangers, unknown fields, bad variants, and bytes that somebody has changed."""

import json
from pathlib import Path
from typing import Any

import pytest
from tests.end_to_end.live_fleet import Fleet

from covey_agent.client import Client

pytestmark = [pytest.mark.end_to_end, pytest.mark.slow, pytest.mark.timeout(400)]
VICTIM = "device-1"
PICTURE = [[[0.5] * 28] * 28]


def assert_problem(answer: Any, status: int) -> dict[str, Any]:
    """An RFC 9457 document with this status."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = answer.json()
    assert problem["detail"]
    return problem


@pytest.mark.parametrize("token", [None, "", "covey_wrong", "x" * 500], ids=["none", "empty", "wrong", "long"])
@pytest.mark.parametrize(("method", "path"), [("GET", "/devices"), ("POST", "/invitations"), ("DELETE", "/devices/device-1")])
def test_nobody_gets_in_without_a_token(fleet: Fleet, token: str | None, method: str, path: str) -> None:
    with fleet.http(token) as api:
        assert_problem(api.request(method, path, json={"device": "intruder"} if method == "POST" else None), 401)
    assert fleet.device("device-1")["state"] == "active"


def test_a_viewer_reads_and_changes_nothing(fleet: Fleet) -> None:
    made = fleet.covey("token", "create", "watcher", "--role", "viewer")
    assert made.returncode == 0, made.stderr
    with fleet.http(made.stdout.strip()) as api:
        assert api.get("/devices").status_code == 200
        assert_problem(api.post("/invitations", json={"device": "intruder"}), 403)
        assert_problem(api.delete("/devices/device-1"), 403)
        assert_problem(api.post("/tokens", json={"name": "more", "role": "admin"}), 403)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/invitations", {"device": "fine", "colour": "red"}),
        ("/rollouts", {"release": 1, "selector": {"all": True}, "probation": 3}),
        ("/runs", {"task": "digits", "rounds": 1, "epsilon": 1000}),
        ("/tokens", {"name": "fine", "rolle": "admin"}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_unknown_field_is_named_and_refused(fleet: Fleet, path: str, body: dict[str, Any]) -> None:
    unknown = list(body)[-1]
    problem = assert_problem(fleet.stage.call().http.post(f"/api/v1{path}", json=body), 422)
    assert unknown in json.dumps(problem)


def test_a_variant_that_lost_more_than_its_budget_makes_no_release(fleet: Fleet) -> None:
    folder = fleet.pack(accuracy_drop=0.05)
    done = fleet.covey("release", "import", str(folder), "--json")
    assert done.returncode == 4, done.stderr
    release = json.loads(done.stdout)
    assert release["state"] == "failed"
    assert "accuracy drops by 0.0500, the budget is 0.01" in release["reason"]
    refused = fleet.stage.call().http.post(
        "/api/v1/rollouts", json={"release": release["id"], "selector": {"devices": [VICTIM]}, "start": True}
    )
    assert_problem(refused, 409)


def test_a_variant_within_its_budget_passes_the_same_gate(fleet: Fleet) -> None:
    done = fleet.covey("release", "import", str(fleet.pack(accuracy_drop=0.005)), "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["state"] == "published"


def test_an_unmeasured_variant_needs_the_word_for_it(fleet: Fleet) -> None:
    done = fleet.covey("release", "import", str(fleet.pack()))
    assert done.returncode == 4
    assert "without measurement" in done.stderr


def test_a_file_that_is_no_model_is_refused_by_the_device(fleet: Fleet) -> None:
    folder = fleet.pack()
    (folder / "model.onnx").write_bytes(b"this is no model" * 100)
    part = ship_bad(fleet, fleet.import_folder(folder), deadline_s=90)
    assert part["deployment_state"] == "rolled_back"
    assert part["reason"].startswith("golden check: ") or "load" in part["reason"], part["reason"]


def test_a_changed_manifest_is_refused_by_the_device(fleet: Fleet) -> None:
    release = fleet.publish()
    (manifest,) = (fleet.stage.server_dir / "tuf" / "targets" / "releases" / "digits").glob(f"*.{release['version']}.json")
    original = manifest.read_bytes()
    manifest.write_bytes(original.replace(b'"golden_tolerance":0.01', b'"golden_tolerance":9.99'))
    assert manifest.read_bytes() != original
    part = ship_bad(fleet, release, deadline_s=90)
    assert part["deployment_state"] == "refused"
    assert "hash" in part["reason"], part["reason"]


def test_a_changed_artifact_never_reaches_a_device(fleet: Fleet) -> None:
    release = fleet.publish()
    digest = release["variants"][0]["artifact"]
    flip_a_byte(fleet.stage.server_dir / "blobs" / digest[:2] / digest[2:])
    part = ship_bad(fleet, release, deadline_s=8, because="did not answer")
    assert part["state"] != "succeeded"
    assert part["chunks_done"] == 0
    assert f"artifact {digest} of a published release cannot be sent" in fleet_log(fleet, "worker")
    alerts = fleet.stage.call().get_all("/alerts")
    assert [alert["severity"] for alert in alerts if (alert["what"], alert["subject"]) == ("artifact_damaged", digest)] == ["critical"]


def test_chunks_that_were_changed_later_are_refused_by_the_device(fleet: Fleet) -> None:
    before = fleet.device(VICTIM)["serving_version"]
    release = fleet.publish()
    fleet.deploy(release, fleet.stage.devices[1])  # the server has read the artifact and found it sound
    digest = release["variants"][0]["artifact"]
    flip_a_byte(fleet.stage.server_dir / "blobs" / digest[:2] / digest[2:])
    rollout = fleet.roll_out(release, VICTIM)
    log = fleet.stage.work_dir / "logs" / f"{VICTIM}.log"
    fleet.wait("the device drops it", lambda: "chunk 0 is not what the manifest says: dropped" in log.read_text("utf-8"))
    deployment = fleet.machine(VICTIM).deployment
    assert deployment is not None
    assert (deployment.version, deployment.chunks_done) == (release["version"], 0)
    fleet.stage.call().post(f"/rollouts/{rollout}/cancel")
    fleet.wait("the device keeps what it had", lambda: is_settled_on(fleet, before))
    with Client(fleet.socket(VICTIM), timeout_s=30) as client:
        assert client.infer(PICTURE).version == before


def ship_bad(fleet: Fleet, release: dict[str, Any], *, deadline_s: float, because: str = "failed") -> dict[str, Any]:
    """Roll a bad release out; it must be halted, and the device must serve what it served before. Its part in the rollout."""
    before = fleet.device(VICTIM)["serving_version"]
    asked = len(fleet.answers(VICTIM))
    rollout = fleet.roll_out(release, VICTIM, deadline_s=deadline_s)
    ended = fleet.wait_over(rollout)
    assert ended["state"] == "halted", fleet.explain()
    assert because in ended["reason"]
    with Client(fleet.socket(VICTIM), timeout_s=30) as client:
        assert client.infer(PICTURE).version == before
    fleet.wait("the device has settled", lambda: fleet.machine(VICTIM).state.value in {"rolled_back", "refused", "committed"}, timeout_s=90)
    assert fleet.device(VICTIM)["serving_version"] == before
    assert [answer for answer in fleet.answers(VICTIM)[asked:] if answer.get("version") != before] == []
    return fleet.parts(rollout)[VICTIM]


def is_settled_on(fleet: Fleet, version: int) -> bool:
    """Whether the device has obeyed the order to run what it runs."""
    machine = fleet.machine(VICTIM)
    return machine.deployment is not None and (machine.state.value, machine.deployment.version) == ("committed", version)


def flip_a_byte(path: Path) -> None:
    """What a failing disk or a visitor does."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(bytes(data))


def fleet_log(fleet: Fleet, name: str) -> str:
    """A server program's log."""
    return (fleet.stage.server_dir / "logs" / f"{name}.log").read_text("utf-8", "replace")
