"""Versions of the agent: signed by administrators, ordered by operators, an alert when a device does not take one."""

import io
import zipfile
from pathlib import Path

import pytest
from httpx2 import Response
from sqlmodel import select
from tests.fakes.agent_wheel import build_wheel, digest_of_file
from tests.fakes.server_parts import TestParts, api_client, enrol, make_parts, sent_messages

from covey_contract.codec import decode, decode_order, encode
from covey_contract.messages import Outcome, Reply, Signed, UpgradeAgent
from covey_server.access.models import Role
from covey_server.audit.models import AuditEvent
from covey_server.devices import handlers
from covey_server.mqtt.router import Router
from covey_server.releases.names import check_target_path, is_stored_name
from covey_server.triggers.models import Alert

VERSION = "9.9.9"


@pytest.fixture
def parts(tmp_path: Path) -> TestParts:
    parts = make_parts(tmp_path)
    enrol(parts, "cam-1")
    return parts


def publish(parts: TestParts, data: bytes, *, role: Role = Role.ADMIN) -> Response:
    answer: Response = api_client(parts, role=role).post("/api/v1/agent-versions", files={"wheel": ("x.whl", data)})
    return answer


def order(parts: TestParts, version: str, *, device: str = "cam-1", role: Role = Role.OPERATOR) -> Response:
    answer: Response = api_client(parts, role=role).post(f"/api/v1/devices/{device}/upgrades", json={"version": version})
    return answer


def commands(parts: TestParts) -> list[object]:
    return [decode_order(decode(message.payload, Signed)) for message in sent_messages(parts, "covey/v1/d/cam-1/down/command")]


def test_a_wheel_becomes_a_signed_target_and_an_order_names_its_digest(parts: TestParts, tmp_path: Path) -> None:
    wheel = build_wheel(tmp_path, VERSION)
    made = publish(parts, wheel.read_bytes())
    assert (made.status_code, made.json()) == (201, {"version": VERSION, "digest": digest_of_file(wheel)})
    assert parts.repository.targets[f"agents/covey-{VERSION}-py3-none-any.whl"] == wheel.read_bytes()
    assert api_client(parts, role=Role.VIEWER).get("/api/v1/agent-versions").json() == [made.json()]
    sent = order(parts, VERSION)
    (command,) = commands(parts)
    assert isinstance(command, UpgradeAgent)
    assert (sent.status_code, command.id, command.device) == (202, sent.json()["command"], "cam-1")
    assert (command.version, command.digest, command.again) == (VERSION, digest_of_file(wheel), False)
    with parts.db.read() as session:
        actions = [event.action for event in session.exec(select(AuditEvent))]
    assert [action for action in actions if action.startswith("agent.")] == ["agent.published", "agent.upgrade_ordered"]


def test_another_wheel_of_a_signed_version_is_refused(parts: TestParts, tmp_path: Path) -> None:
    assert publish(parts, build_wheel(tmp_path, VERSION).read_bytes()).status_code == 201
    assert publish(parts, build_wheel(tmp_path, VERSION, run="x = 1").read_bytes()).status_code == 409
    assert publish(parts, build_wheel(tmp_path, VERSION).read_bytes()).status_code == 201


def test_only_administrators_sign_code_and_only_operators_order_it(parts: TestParts, tmp_path: Path) -> None:
    wheel = build_wheel(tmp_path, VERSION).read_bytes()
    assert publish(parts, wheel, role=Role.OPERATOR).status_code == 403
    assert publish(parts, wheel).status_code == 201
    assert order(parts, VERSION, role=Role.VIEWER).status_code == 403
    assert order(parts, "1.2.3").status_code == 404
    assert order(parts, VERSION, device="nobody").status_code == 404
    assert commands(parts) == []


def archive(**files: str) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as made:
        for name, text in files.items():
            made.writestr(name, text)
    return data.getvalue()


METADATA = "covey-1.dist-info/METADATA"
CODE = {"covey_agent/cli.py": "", "covey_contract/__init__.py": ""}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no archive",
        archive(),
        archive(**CODE),
        archive(**{METADATA: "Version: 1\n"}),
        archive(**CODE, **{METADATA: "Name: covey\n"}),
        archive(**CODE, **{METADATA: "Version: ../1\n"}),
        b"x" * 5_000_001,
    ],
    ids=["empty", "garbage", "nothing in it", "no metadata", "no agent", "no version", "a path", "too long"],
)
def test_what_is_no_wheel_of_covey_is_refused(parts: TestParts, data: bytes) -> None:
    assert publish(parts, data).status_code == 422
    assert parts.repository.targets == {}


@pytest.mark.parametrize(("outcome", "alerts"), [(Outcome.DONE, []), (Outcome.REFUSED, ["agent_upgrade_refused"])])
def test_a_device_that_does_not_take_it_is_an_alert(parts: TestParts, tmp_path: Path, outcome: Outcome, alerts: list[str]) -> None:
    publish(parts, build_wheel(tmp_path, VERSION).read_bytes())
    ident = order(parts, VERSION).json()["command"]
    router = Router(parts)
    handlers.register(router)
    assert router.route("covey/v1/d/cam-1/up/reply", encode(Reply(ident, outcome, 1, reason="its own settings")))
    with parts.db.read() as session:
        assert [alert.what for alert in session.exec(select(Alert))] == alerts


def test_only_a_wheel_of_covey_may_be_such_a_target() -> None:
    check_target_path("agents/covey-0.2.0-py3-none-any.whl")
    assert is_stored_name(f"targets/agents/{'0' * 64}.covey-0.2.0-py3-none-any.whl")
    for name in ("agents/evil.whl", "agents/../covey-1-py3-none-any.whl", "covey-1-py3-none-any.whl", "agents/covey-1-py3-none-any.whl\n"):
        with pytest.raises(Exception, match="target path"):
            check_target_path(name)
        assert not is_stored_name(f"targets/{name}")
