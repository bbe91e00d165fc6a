"""Presence and reported state as they arrive on MQTT, in good and bad order."""

from pathlib import Path
from typing import Any

import pytest
from tests.fakes.server_parts import START, TestParts, enrol, live_events, make_parts

from covey_contract.codec import encode
from covey_contract.limits import MAX_MILLIS
from covey_contract.messages import DeploymentReport, DeploymentState, Presence, Profile, Quarantined, Reported, SlotReport, Status
from covey_server.clock import to_millis
from covey_server.devices import handlers, service
from covey_server.devices.models import Device, DevicePresence
from covey_server.mqtt.router import Router

AT = to_millis(START)
STATUS = "covey/v1/d/cam-1/status"
REPORTED = "covey/v1/d/cam-1/up/reported"


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


def device(parts: TestParts) -> Device:
    with parts.db.read() as session:
        return service.get_device(session, "cam-1")


def reported(generation: int, **more: Any) -> bytes:
    values = {"agent_version": "0.2.0", "profile": Profile.DEVICE, "at": AT, **more}
    return encode(Reported(generation=generation, **values))


def status(presence: Presence, boot: str = "b1") -> bytes:
    return encode(Status(presence, boot, AT))


def test_presence_follows_status(parts: TestParts, router: Router) -> None:
    assert router.route(STATUS, status(Presence.ONLINE))
    assert (device(parts).presence, device(parts).last_seen_at) == (DevicePresence.ONLINE, parts.clock())
    parts.clock.advance(minutes=5)
    assert router.route(STATUS, status(Presence.OFFLINE))
    assert (device(parts).presence, device(parts).presence_at) == (DevicePresence.OFFLINE, parts.clock())


def test_the_last_will_of_a_process_that_was_replaced_does_not_count(parts: TestParts, router: Router) -> None:
    router.route(STATUS, status(Presence.ONLINE, "b1"))
    router.route(STATUS, status(Presence.ONLINE, "b2"))
    assert not router.route(STATUS, status(Presence.OFFLINE, "b1"))
    assert router.refused == {"stale": 1}
    assert device(parts).presence is DevicePresence.ONLINE


def test_a_repeated_status_tells_the_consoles_nothing_new(parts: TestParts, router: Router) -> None:
    for _ in range(3):
        router.route(STATUS, status(Presence.ONLINE))
    assert len(live_events(parts, "device.changed")) == 2  # enrolled, online


def test_a_report_fills_the_device(parts: TestParts, router: Router) -> None:
    slots = [SlotReport("A", "digits", 3, "f" * 64, "onnx-int8", "a" * 64), SlotReport("B")]
    deployment = DeploymentReport("dep-1", "digits", 3, DeploymentState.COMMITTED)
    assert router.route(REPORTED, reported(7, active_slot="A", serving=True, slots=slots, deployment=deployment, training="run-1"))
    row = device(parts)
    assert (row.serving_model, row.serving_version, row.serving_variant, row.active_slot) == ("digits", 3, "onnx-int8", "A")
    assert (row.deployment_state, row.training, row.agent_version, row.reported_generation) == ("committed", "run-1", "0.2.0", 7)
    assert row.reported["deployment"]["state"] == "committed"


def test_nothing_is_served_while_no_slot_serves(parts: TestParts, router: Router) -> None:
    slots = [SlotReport("A", "digits", 3, "f" * 64, "onnx-int8", "a" * 64)]
    router.route(REPORTED, reported(1, active_slot="A", serving=False, slots=slots))
    assert device(parts).serving_model == ""


def test_an_older_generation_is_refused_and_counted(parts: TestParts, router: Router) -> None:
    router.route(REPORTED, reported(5, agent_version="new"))
    assert not router.route(REPORTED, reported(4, agent_version="old"))
    assert router.refused == {"stale": 1}
    assert device(parts).agent_version == "new"


def test_the_same_generation_again_is_no_error(parts: TestParts, router: Router) -> None:
    assert router.route(REPORTED, reported(5))
    assert router.route(REPORTED, reported(5))


def test_a_device_that_lost_its_counter_is_heard_again(parts: TestParts, router: Router) -> None:
    router.route(REPORTED, reported(500))
    assert router.route(REPORTED, reported(1, at=AT + 3_600_000, agent_version="reborn"))
    assert device(parts).agent_version == "reborn"


def test_a_report_of_another_profile_is_refused(parts: TestParts, router: Router) -> None:
    assert not router.route(REPORTED, reported(1, profile=Profile.PARTNER))
    assert router.refused == {"InvalidInputError": 1}


def test_quarantine_follows_the_report(parts: TestParts, router: Router) -> None:
    router.route(
        REPORTED, reported(1, quarantine=[Quarantined("a" * 64, "crashed", AT), Quarantined("b" * 64, "wrong answers", MAX_MILLIS)])
    )
    with parts.db.read() as session:
        found = {entry.digest[0]: entry for entry in service.list_quarantine(session, "cam-1")}
    assert {digest: entry.reason for digest, entry in found.items()} == {"a": "crashed", "b": "wrong answers"}
    assert found["b"].at == parts.clock()  # its clock said the year 9999
    router.route(REPORTED, reported(2, quarantine=[Quarantined("b" * 64, "wrong answers", AT)]))
    with parts.db.read() as session:
        assert [entry.digest for entry in service.list_quarantine(session, "cam-1")] == ["b" * 64]


@pytest.mark.parametrize("topic", ["covey/v1/d/cam-9/status", "covey/v1/d/cam-9/up/reported"])
def test_a_stranger_is_refused(router: Router, topic: str) -> None:
    assert not router.route(topic, status(Presence.ONLINE) if topic.endswith("status") else reported(1))
    assert router.refused == {"NotFoundError": 1}


def test_a_revoked_device_is_refused(parts: TestParts, router: Router) -> None:
    with parts.db.begin() as session:
        service.revoke_device(session, "cam-1", actor="user:test", now=parts.clock())
    assert not router.route(REPORTED, reported(1))
    assert router.refused == {"ForbiddenError": 1}
