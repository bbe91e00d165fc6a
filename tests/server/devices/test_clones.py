"""Two machines with one identity: told from a restart, from a restored image and from what a broker delivers twice."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from sqlmodel import select
from tests.fakes.server_parts import START, TestParts, api_client, enrol, make_parts

from covey_contract.codec import encode
from covey_contract.messages import Presence, Profile, Reading, ReadingBatch, Reported, Status
from covey_server.clock import to_millis
from covey_server.devices import handlers
from covey_server.devices.models import Device, DeviceState
from covey_server.mqtt.router import Router
from covey_server.settings import PkiSettings, Settings
from covey_server.telemetry import handlers as telemetry_handlers
from covey_server.triggers.models import Alert, Severity

AT = to_millis(START)
TOPIC = "covey/v1/d/cam-1/"


class Server:
    """What the server makes of a device's words."""

    def __init__(self, parts: TestParts) -> None:
        self.parts = parts
        self.router = Router(parts)
        handlers.register(self.router)
        telemetry_handlers.register(self.router)
        enrol(parts, "cam-1")

    def hears(self, boot: str, at: int, generation: int, *, online: bool = True) -> None:
        """An agent connects, and reports."""
        self.parts.clock.advance(seconds=1)
        if online:
            self.router.route(TOPIC + "status", encode(Status(Presence.ONLINE, boot, AT + at)))
        self.router.route(TOPIC + "up/reported", encode(Reported(generation, "1", Profile.DEVICE, AT + at, boot=boot)))

    def reads(self, first: int, times: Sequence[int], *, epoch: str = "e1") -> None:
        """Readings come."""
        readings = [Reading(AT + at, "system", {"cpu_percent": 1.0}) for at in times]
        assert self.router.route(TOPIC + "up/readings", encode(ReadingBatch(epoch, first, readings)))

    def alerts(self) -> list[tuple[str, Severity]]:
        with self.parts.db.read() as session:
            return [(alert.what, alert.severity) for alert in session.exec(select(Alert).order_by(Alert.id))]  # type: ignore[arg-type]  # a column

    def details(self) -> str:
        with self.parts.db.read() as session:
            return "\n".join(alert.detail for alert in session.exec(select(Alert)))

    def device(self) -> Device:
        with self.parts.db.read() as session:
            return session.get_one(Device, "cam-1")


@pytest.fixture
def server(tmp_path: Path) -> Server:
    return Server(make_parts(tmp_path))


def test_ordinary_restarts_are_no_alarm(server: Server) -> None:
    for number in range(30):
        server.hears(f"b{number}", 100 * number, 100 * number)
        server.hears(f"b{number}", 100 * number + 50, 100 * number + 1)
    assert server.alerts() == []
    assert server.device().reported_generation == 2901
    boots = api_client(server.parts).get("/api/v1/devices/cam-1").json()["boots"]
    assert boots[0]["boot"] == "b29"
    assert len(boots) <= 21


def test_many_connections_of_one_process_are_no_alarm(server: Server) -> None:
    for number in range(20):
        server.hears("b1", number, number)
    assert server.alerts() == []


def test_what_a_broker_delivers_once_more_is_no_alarm(server: Server) -> None:
    for _ in range(3):
        server.hears("b1", 0, 1)
        server.hears("b1", 10, 2)
        server.hears("b2", 20, 101)
        server.hears("b2", 30, 102)
    assert server.alerts() == []
    assert (server.device().boot, server.device().reported_generation) == ("b2", 102)


def test_one_message_that_overtook_another_is_no_alarm(server: Server) -> None:
    server.hears("b1", 0, 1)
    server.hears("b2", 20, 101)
    server.hears("b1", 10, 2, online=False)
    server.hears("b2", 30, 102)
    assert server.alerts() == []
    assert server.device().clone_suspected_at is None


def test_a_restored_image_is_told_and_is_no_clone(server: Server) -> None:
    for number in range(5):
        server.hears("old", number, number + 1)
    server.hears("restored", 100, 3)
    assert server.alerts() == [("state_rewound", Severity.WARNING)]
    assert "old" in server.details()
    assert server.device().reported_generation == 3  # it is heard at once, although it counts from where the image was
    for number in range(10):
        server.hears("restored", 101 + number, 4 + number)
    server.hears("next", 200, 200)
    assert server.alerts() == [("state_rewound", Severity.WARNING)]
    assert server.device().clone_suspected_at is None


def test_two_machines_on_copies_of_one_card_are_named(server: Server) -> None:
    server.hears("before", 0, 50)
    server.hears("one", 10, 101)
    server.hears("two", 11, 101)  # both reserve the same numbers
    assert server.alerts() == [("state_rewound", Severity.WARNING)]
    server.hears("one", 12, 102)
    server.hears("two", 13, 102)
    assert ("identity_cloned", Severity.CRITICAL) in server.alerts()
    assert "boots one and two" in server.details()
    assert server.device().clone_suspected_at is not None
    assert server.device().state is DeviceState.ACTIVE
    shown = api_client(server.parts).get("/api/v1/devices/cam-1").json()
    assert shown["clone_suspected_at"]
    assert {boot["boot"] for boot in shown["boots"]} == {"before", "one", "two"}


def test_clones_whose_numbers_do_not_meet_are_named_by_their_turns(server: Server) -> None:
    for turn in range(3):
        server.hears("one", 10 * turn, 101 + turn)
        server.hears("two", 10 * turn + 1, 5001 + turn)
    assert ("identity_cloned", Severity.CRITICAL) in server.alerts()


def test_the_alarm_is_one_and_stays_until_somebody_has_seen_it(server: Server) -> None:
    for turn in range(10):
        server.hears("one", 10 * turn, 101 + turn)
        server.hears("two", 10 * turn + 1, 101 + turn)
    assert server.alerts().count(("identity_cloned", Severity.CRITICAL)) == 1


def test_by_policy_a_clone_is_revoked(tmp_path: Path) -> None:
    server = Server(make_parts(tmp_path, settings=Settings(work_dir=tmp_path, pki=PkiSettings(on_clone="revoke"))))
    for turn in range(3):
        server.hears("one", 10 * turn, 101 + turn)
        server.hears("two", 10 * turn + 1, 101 + turn)
    assert server.device().state is DeviceState.REVOKED
    assert "revoked" in server.details()


def test_a_reading_with_two_contents_is_a_fork_and_a_repetition_is_none(server: Server) -> None:
    server.hears("one", 0, 1)
    server.reads(1, [0, 1, 2])
    server.reads(1, [0, 1, 2])
    server.reads(2, [1, 2, 3])
    server.reads(1, [0, 1, 2], epoch="e2")
    assert server.alerts() == []
    server.reads(3, [2, 77, 78])
    assert server.alerts() == [("state_rewound", Severity.WARNING)]
    assert "reading" in server.details()
    server.hears("two", 5, 101)
    server.hears("one", 6, 2)
    server.hears("two", 7, 102)
    assert ("identity_cloned", Severity.CRITICAL) in server.alerts()


def test_readings_of_a_clock_that_is_far_ahead_are_no_fork(server: Server) -> None:
    century = 100 * 365 * 86_400_000
    server.reads(1, [century, century + 1])
    server.parts.clock.advance(hours=1)
    server.reads(1, [century, century + 1])
    assert server.alerts() == []


def test_an_agent_from_before_boots_were_reported_is_heard(server: Server) -> None:
    server.hears("", 0, 1, online=False)
    server.hears("", 1, 2, online=False)
    assert (server.device().reported_generation, server.alerts()) == (2, [])
