"""REST of releases and rollouts, and the commands on top of it, through the real application."""

import functools
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from tests.server.releases.bench import Bench, import_spec, make_bench
from typer.testing import CliRunner

from covey_contract.codec import digest_of
from covey_server.access.models import Role
from covey_server.access.service import create_token
from covey_server.api_errors import install_error_handlers
from covey_server.cli import http as cli_http
from covey_server.cli import releases as release_commands
from covey_server.cli import rollouts as rollout_commands
from covey_server.cli.http import ApiClient
from covey_server.cli.output import CommandError, ExitCode
from covey_server.cli.rollouts import parse_phase
from covey_server.federation.models import Run, RunState, Task
from covey_server.privacy import service as privacy
from covey_server.privacy.service import Account
from covey_server.releases import api as releases_api
from covey_server.releases.models import ReleaseBuild
from covey_server.releases.requests import request_from_row
from covey_server.releases.uploads import BodyLimit
from covey_server.rollouts import api as rollouts_api

NPZ = b"PK\x03\x04rest of a zip"
SPEC = msgspec.json.encode(import_spec())


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    bench = make_bench(tmp_path)
    bench.add_devices("pi-1", "pi-2", "pi-3")
    return bench


@functools.cache
def make_app() -> FastAPI:
    """Made once, because routes take longer to build than to call; each test puts its own parts in."""
    app = FastAPI()
    install_error_handlers(app)
    app.include_router(releases_api.router)
    app.include_router(rollouts_api.router)
    app.add_middleware(BodyLimit, max_bytes=100_000)
    return app


def token(bench: Bench, role: Role) -> str:
    with bench.parts.db.begin() as session:
        return create_token(session, f"test-{role}", role=role, actor="system", now=bench.clock())[1]


@contextmanager
def client_of(bench: Bench, role: Role) -> Iterator[TestClient]:
    app = make_app()
    app.state.parts = bench.parts
    with TestClient(app, headers={"Authorization": f"Bearer {token(bench, role)}"}) as client:
        yield client


@pytest.fixture
def client(bench: Bench) -> Iterator[TestClient]:
    with client_of(bench, Role.OPERATOR) as client:
        yield client


def imported(client: TestClient, *, spec: bytes = SPEC, content: bytes = b"model", **form: str) -> Any:
    files = [("description", ("release.json", spec)), ("artifacts", ("onnx-int8.onnx", content))]
    return client.post("/api/v1/releases/imports", files=files, data=form)


def uploaded(client: TestClient, *, name: str = "m.onnx", description: str = '{"model":"digits"}', calibration: bytes = NPZ) -> Any:
    files = {"model": (name, b"an onnx file"), "calibration": ("c.npz", calibration)}
    return client.post("/api/v1/releases/uploads", files=files, data={"description": description})


def test_an_import_is_published_shown_and_can_be_downloaded(client: TestClient) -> None:
    made = imported(client)
    assert made.status_code == 201
    release = made.json()
    assert (release["state"], release["version"], release["variants"][0]["accuracy"]) == ("published", 1, 0.9)
    assert client.get(f"/api/v1/releases/{release['id']}").json() == release
    assert client.get("/api/v1/releases", params={"model": "digits"}).json() == {"items": [release], "next": None}
    artifact = client.get(f"/api/v1/artifacts/{release['variants'][0]['artifact']}", headers={"Range": "bytes=1-2"})
    assert (artifact.status_code, artifact.content) == (206, b"od")
    manifest = client.get(f"/api/v1/artifacts/{release['manifest_digest']}")
    assert digest_of(manifest.content) == release["manifest_digest"]


def test_releases_come_in_pages_and_with_etags(client: TestClient) -> None:
    for _ in range(3):
        imported(client)
    first = client.get("/api/v1/releases", params={"limit": 2}).json()
    second = client.get("/api/v1/releases", params={"limit": 2, "cursor": first["next"]}).json()
    assert [item["version"] for item in first["items"] + second["items"]] == [3, 2, 1]
    assert second["next"] is None
    etag = client.get("/api/v1/releases/1").headers["ETag"]
    assert client.get("/api/v1/releases/1", headers={"If-None-Match": etag}).status_code == 304


def test_unmeasured_needs_the_word(client: TestClient) -> None:
    bare = msgspec.json.encode(import_spec(variants=(("onnx-int8", None),)))
    refused = imported(client, spec=bare)
    assert (refused.status_code, "--unmeasured" in refused.json()["detail"]) == (422, True)
    assert imported(client, spec=bare, unmeasured="true").json()["state"] == "published"


def test_a_repeated_import_with_the_same_key_makes_one_release(client: TestClient) -> None:
    client.headers["Idempotency-Key"] = "k1"
    assert imported(client).json() == imported(client).json()
    assert len(client.get("/api/v1/releases").json()["items"]) == 1


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        ({"spec": b"{}"}, "missing required field"),
        ({"spec": b"\xff"}, "not valid"),
        ({"content": b""}, "missing or empty"),
        ({"unmeasured": "perhaps"}, "unmeasured"),
    ],
)
def test_a_bad_import_is_refused_with_the_reason(client: TestClient, arguments: dict[str, Any], fault: str) -> None:
    refused = imported(client, **arguments)
    assert refused.status_code == 422
    assert fault in refused.json()["detail"]


def test_an_upload_becomes_an_order_to_build(bench: Bench, client: TestClient) -> None:
    made = uploaded(client, description='{"model":"digits","labels":["a"],"max_accuracy_drop":0.05,"bounds":{"p95_latency_ms":5}}')
    assert made.status_code == 201
    assert (made.json()["state"], made.json()["progress"]) == ("building", "waiting for a worker")
    with bench.parts.db.read() as session:
        request = request_from_row(session.get_one(ReleaseBuild, made.json()["id"]).request)
    assert (request.source, request.labels, request.options.max_accuracy_drop) == ("onnx", ["a"], 0.05)
    assert request.options.bounds.p95_latency_ms == 5
    assert bench.parts.blobs.read(request.model) == b"an onnx file"
    assert bench.parts.blobs.read(request.calibration) == NPZ
    assert list(bench.parts.settings.path("uploads").iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        ({"name": "m.exe"}, "must be an .onnx or a .pt2"),
        ({"description": "{}"}, "model: Field required"),
        ({"description": '{"model":"../x"}'}, "model"),
        ({"description": '{"model":"digits","surprise":1}'}, "surprise"),
        ({"description": '{"model":"digits","max_accuracy_drop":2}'}, "max_accuracy_drop"),
        ({"description": "no json"}, "not valid"),
        ({"calibration": b"no npz"}, "is not an .npz file"),
    ],
)
def test_a_bad_upload_is_refused_with_the_reason(client: TestClient, arguments: dict[str, Any], fault: str) -> None:
    refused = uploaded(client, **arguments)
    assert refused.status_code == 422
    assert fault in refused.json()["detail"]


@pytest.mark.parametrize("name", ["../../evil.onnx", "/etc/passwd.onnx", ".onnx", "a\x00b.onnx", "ü ö.onnx"])
def test_an_uploads_name_is_no_path(bench: Bench, client: TestClient, name: str) -> None:
    assert uploaded(client, name=name).status_code == 201
    assert not list(bench.parts.settings.path().parent.rglob("evil*"))


def test_a_body_over_the_limit_is_413_with_and_without_a_length(client: TestClient) -> None:
    assert uploaded(client, calibration=NPZ + b"x" * 200_000).status_code == 413

    def pieces() -> Iterator[bytes]:
        for _ in range(20):
            yield b"x" * 10_000

    answer = client.post("/api/v1/releases/imports", content=pieces(), headers={"Content-Type": "multipart/form-data; boundary=b"})
    assert answer.status_code == 413
    assert "api.max_body_mb" in answer.json()["detail"]


def test_a_release_of_a_run_carries_its_lineage(bench: Bench, client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    held_out = bench.parts.settings.path("held_out.npz")
    held_out.write_bytes(NPZ)
    with bench.parts.db.begin() as session:
        session.add(Task(id=1, name="digits", digest="c" * 64, labels=["0", "1"]))
        session.flush()
        session.add(
            Run(id="r1", task_id=1, model="digits", state=RunState.COMPLETED, rounds_done=3, checkpoint="d" * 64, held_out=str(held_out))
        )
        session.add(Run(id="r2", task_id=1, model="digits"))
        session.flush()

    # What the ledger makes of events is tested where it is written; here, what becomes of its accounts.
    accounts = [Account("pi-1", "d", 1e-5, 2.5, 3, 0), Account("pi-1", "e", 1e-5, 1.5, 3, 0), Account("pi-2", "d", 1e-6, math.inf, 3, 0)]
    monkeypatch.setattr(privacy, "list_accounts", lambda _session, *, run: accounts if run == "r1" else [])
    made = client.post("/api/v1/releases", json={"run": "r1"})
    assert made.status_code == 201
    lineage = made.json()["lineage"]
    assert (lineage["run"], lineage["rounds"], lineage["delta"]) == ("r1", 3, 1e-5)
    assert lineage["epsilon"] == {"pi-1": 2.5}
    assert lineage["note"] == "no privacy guarantee for pi-2"
    with bench.parts.db.read() as session:
        request = request_from_row(session.get_one(ReleaseBuild, made.json()["id"]).request)
    assert (request.source, request.model, request.weights, request.labels) == ("task", "c" * 64, "d" * 64, ["0", "1"])
    assert client.post("/api/v1/releases", json={"run": "r2"}).json()["detail"] == "run r2 is planned and has no weights yet"
    assert client.post("/api/v1/releases", json={"run": "r3"}).status_code == 404
    assert client.post("/api/v1/releases", json={"run": "r1", "calibration": "/nowhere.npz"}).status_code == 422


def rollout_body(**more: Any) -> dict[str, Any]:
    phases = [{"name": "canary", "devices": ["pi-2"]}, {"name": "rest"}]
    return {"release": 1, "selector": {"all": True}, "phases": phases, **more}


def test_a_rollout_is_drafted_started_paused_resumed_and_cancelled(client: TestClient) -> None:
    imported(client)
    made = client.post("/api/v1/rollouts", json=rollout_body()).json()
    assert (made["state"], made["model"], made["phases"][0]["devices"]) == ("draft", "digits", {"pending": 1})
    for act, state in (("start", "running"), ("pause", "paused"), ("resume", "running"), ("cancel", "cancelled")):
        answer = client.post(f"/api/v1/rollouts/{made['id']}/{act}")
        assert (answer.status_code, answer.json()["state"]) == (200, state)
    assert client.post(f"/api/v1/rollouts/{made['id']}/start").status_code == 409
    devices = client.get(f"/api/v1/rollouts/{made['id']}/devices", params={"limit": 2}).json()
    assert [(device["device_id"], device["phase"]) for device in devices["items"]] == [("pi-2", 0), ("pi-1", 1)]
    rest = client.get(f"/api/v1/rollouts/{made['id']}/devices", params={"limit": 2, "cursor": devices["next"]}).json()
    assert [device["state"] for device in rest["items"]] == ["skipped"]


def test_rollouts_come_in_pages(bench: Bench, client: TestClient) -> None:
    imported(client)
    ids = []
    for _ in range(3):
        bench.clock.advance(1)
        ids.append(client.post("/api/v1/rollouts", json=rollout_body()).json()["id"])
    first = client.get("/api/v1/rollouts", params={"limit": 2}).json()
    second = client.get("/api/v1/rollouts", params={"limit": 2, "cursor": first["next"]}).json()
    assert [item["id"] for item in first["items"] + second["items"]] == ids[::-1]
    assert client.get("/api/v1/rollouts", params={"cursor": "WyJub3ciLCJ4Il0"}).status_code == 422


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"release": 99}, 404),
        ({"selector": {"devices": ["nobody"]}}, 404),
        ({"selector": {"labels": {"a": "b"}}}, 422),
        ({"phases": []}, 422),
        ({"phases": [{"name": "a", "count": 1, "percent": 2}]}, 422),
        ({"probation_s": 0}, 422),
        ({"surprise": 1}, 422),
    ],
)
def test_a_bad_rollout_is_refused(client: TestClient, change: dict[str, Any], status: int) -> None:
    imported(client)
    assert client.post("/api/v1/rollouts", json=rollout_body(**change)).status_code == status


def test_viewers_read_and_strangers_see_nothing(bench: Bench) -> None:
    with client_of(bench, Role.VIEWER) as viewer:
        assert viewer.get("/api/v1/releases").status_code == 200
        for answer in (
            imported(viewer),
            viewer.post("/api/v1/rollouts", json=rollout_body()),
            viewer.post("/api/v1/releases/1/withdraw", json={}),
        ):
            assert answer.status_code == 403
        viewer.headers.pop("Authorization")
        for path in ("releases", "releases/1", "rollouts", "rollouts/x", f"artifacts/{'a' * 64}"):
            assert viewer.get(f"/api/v1/{path}").status_code == 401


def test_an_artifact_is_only_what_releases_name(bench: Bench, client: TestClient) -> None:
    secret = bench.parts.blobs.put(b"calibration data")
    assert client.get(f"/api/v1/artifacts/{secret}").status_code == 404
    assert client.get("/api/v1/artifacts/..%2f..%2ffleet.db").status_code in {404, 422}


# -- commands ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def run(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run a command against the application in this process."""

    http: Any = client  # it answers like the httpx client that it is modelled on

    def connect() -> ApiClient:
        return ApiClient(http)

    for module in (cli_http, release_commands, rollout_commands):
        monkeypatch.setattr(module, "connect", connect)
    monkeypatch.setattr(client, "close", lambda: None)
    runner = CliRunner()

    def invoke(app: Any, *arguments: str) -> tuple[int, str]:
        result = runner.invoke(app, list(arguments))
        if isinstance(result.exception, CommandError):
            return result.exception.code, str(result.exception)
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.exit_code, result.output

    return invoke


def test_commands_import_show_and_roll_out(run: Any, tmp_path: Path, client: TestClient) -> None:
    folder = tmp_path / "made"
    folder.mkdir()
    (folder / "release.json").write_bytes(SPEC)
    (folder / "onnx-int8.onnx").write_bytes(b"model")
    code, output = run(release_commands.app, "import", str(folder))
    assert (code, "published" in output) == (0, True)
    assert "digits:1" in run(release_commands.app, "list")[1]
    assert run(release_commands.app, "show", "digits:2") == (ExitCode.NOT_FOUND, "there is no release digits:2")
    code, output = run(rollout_commands.app, "create", "--release", "digits:1", "--phase", "canary=1", "--phase", "rest", "--start")
    rollout = next(line for line in output.splitlines() if line.startswith("ro-"))
    assert code == 0
    listed = json.loads(run(rollout_commands.app, "list", "--json")[1])
    assert [phase["devices"] for phase in listed[0]["phases"]] == [{"sent": 1}, {"pending": 2}]
    assert run(rollout_commands.app, "cancel", rollout)[0] == 0
    code, output = run(rollout_commands.app, "watch", rollout)
    assert (code, "was cancelled" in output) == (ExitCode.FAILED, True)
    assert run(rollout_commands.app, "start", rollout)[0] == ExitCode.REFUSED
    assert run(release_commands.app, "withdraw", "digits:1", "--reason", "old")[0] == 0
    assert client.get("/api/v1/releases/1").json()["reason"] == "old"


def test_a_command_that_cannot_be_meant_is_a_usage_error(run: Any, tmp_path: Path) -> None:
    for arguments in (["create"], ["create", "--file", __file__], ["import", str(tmp_path)], ["show", "digits"]):
        assert run(release_commands.app, *arguments)[0] == ExitCode.USAGE
    assert run(rollout_commands.app, "create", "--release", "1", "--all", "--device", "pi-1")[0] == ExitCode.USAGE


@pytest.mark.parametrize(
    ("text", "phase"),
    [
        ("canary=1", {"name": "canary", "count": 1}),
        ("tenth=10%:2", {"name": "tenth", "percent": 10.0, "max_failures": 2}),
        ("lab=pi-1,pi-2", {"name": "lab", "devices": ["pi-1", "pi-2"]}),
        ("rest", {"name": "rest"}),
        ("rest:3", {"name": "rest", "max_failures": 3}),
    ],
)
def test_phases_on_the_command_line(text: str, phase: dict[str, Any]) -> None:
    assert parse_phase(text) == phase


@pytest.mark.parametrize("text", ["", "=1", "a=", "a=x%", "a=1:many"])
def test_a_phase_that_is_none_is_a_usage_error(text: str) -> None:
    with pytest.raises(CommandError):
        parse_phase(text)
