"""Asking a device for a fresh key, and to leave for good: signed, sent again, ended by its answer or its silence."""

from datetime import timedelta
from pathlib import Path

import pytest
from sqlmodel import select
from tests.fakes.server_parts import START, TestParts, api_client, enrol, make_parts, sent_messages

from covey_contract.codec import decode, decode_order, encode
from covey_contract.messages import Decommission, Outcome, Presence, Reply, RotateCertificate, Signed, Status
from covey_server.access.models import Role
from covey_server.audit.models import AuditEvent
from covey_server.clock import to_millis
from covey_server.devices import farewell, handlers, service
from covey_server.devices.models import DeviceState
from covey_server.mqtt.router import Router
from covey_server.triggers.models import Alert

COMMANDS = "covey/v1/d/cam-1/down/command"


@pytest.fixture
def parts(tmp_path: Path) -> TestParts:
    parts = make_parts(tmp_path)
    enrol(parts, "cam-1")
    return parts


@pytest.fixture
def router(parts: TestParts) -> Router:
    router = Router(parts)
    handlers.register(router)
    return router


def commands(parts: TestParts) -> list[object]:
    return [decode_order(decode(message.payload, Signed)) for message in sent_messages(parts, COMMANDS)]


def state(parts: TestParts) -> DeviceState:
    with parts.db.read() as session:
        return service.get_device(session, "cam-1").state


def ask(parts: TestParts, **body: object) -> dict[str, object]:
    answer = api_client(parts).post("/api/v1/devices/cam-1/decommission", json=body)
    assert answer.status_code == 202, answer.text
    found: dict[str, object] = answer.json()
    return found


def reply(router: Router, ident: str, outcome: Outcome = Outcome.DONE, **values: str) -> bool:
    return router.route("covey/v1/d/cam-1/up/reply", encode(Reply(ident, outcome, 1, values=dict(values))))


def test_a_rotation_is_a_signed_command_that_expires(parts: TestParts) -> None:
    answer = api_client(parts, role=Role.OPERATOR).post("/api/v1/devices/cam-1/rotations")
    (command,) = commands(parts)
    assert isinstance(command, RotateCertificate)
    assert (command.id, command.device) == (answer.json()["command"], "cam-1")
    assert command.expires_at == to_millis(START + timedelta(days=1))


def test_only_operators_rotate_and_only_administrators_decommission(parts: TestParts) -> None:
    assert api_client(parts, role=Role.VIEWER).post("/api/v1/devices/cam-1/rotations").status_code == 403
    assert api_client(parts, role=Role.OPERATOR).post("/api/v1/devices/cam-1/decommission", json={}).status_code == 403
    assert commands(parts) == []


def test_a_device_that_answers_is_revoked_with_what_it_wiped_on_record(parts: TestParts, router: Router) -> None:
    ask(parts, wipe=True)
    (command,) = commands(parts)
    assert isinstance(command, Decommission)
    assert command.wipe
    assert not reply(router, "another") or state(parts) is DeviceState.ACTIVE
    assert reply(router, command.id, wiped="keys")
    assert state(parts) is DeviceState.REVOKED
    with parts.db.read() as session:
        event = session.exec(select(AuditEvent).where(AuditEvent.action == "device.decommissioned")).one()
    assert event.detail["wiped"] == "keys"


def test_a_device_that_was_away_gets_the_command_again_when_it_connects(parts: TestParts, router: Router) -> None:
    ask(parts)
    for number in range(2):
        assert router.route("covey/v1/d/cam-1/status", encode(Status(Presence.ONLINE, "b1", to_millis(START) + number)))
    assert len({command.id for command in commands(parts) if isinstance(command, Decommission)}) == 1
    assert len(commands(parts)) == 3


def test_a_device_that_does_not_answer_in_time_is_revoked_and_told(parts: TestParts) -> None:
    ask(parts, wait_hours=24)
    for hours, expected in ((23, DeviceState.ACTIVE), (2, DeviceState.REVOKED)):
        now = parts.clock.advance(hours=hours)
        with parts.db.begin() as session:
            farewell.end_unanswered(session, now=now)
        assert state(parts) is expected
    with parts.db.read() as session:
        assert [alert.what for alert in session.exec(select(Alert))] == ["decommission_unanswered"]


def test_a_device_that_cannot_leave_is_told_and_stays(parts: TestParts, router: Router) -> None:
    ask(parts)
    (command,) = commands(parts)
    assert isinstance(command, Decommission)
    reply(router, command.id, Outcome.FAILED)
    assert state(parts) is DeviceState.ACTIVE
    with parts.db.read() as session:
        assert [alert.what for alert in session.exec(select(Alert))] == ["decommission_refused"]


def test_a_device_that_joins_again_is_not_asked_to_leave(parts: TestParts, router: Router) -> None:
    ask(parts)
    with parts.db.begin() as session:
        service.revoke_device(session, "cam-1", actor="user:test", now=parts.clock())
    enrol(parts, "cam-1")
    before = len(commands(parts))
    router.route("covey/v1/d/cam-1/status", encode(Status(Presence.ONLINE, "b9", to_millis(START))))
    assert len(commands(parts)) == before


def test_certificates_that_run_out_are_told_once(parts: TestParts) -> None:
    alarm = timedelta(days=14)
    for days, count in ((300, 0), (60, 1), (1, 1), (30, 1)):
        now = parts.clock.advance(days=days)
        with parts.db.begin() as session:
            farewell.alert_expiring(session, alarm=alarm, now=now)
            assert len(session.exec(select(Alert)).all()) == count
