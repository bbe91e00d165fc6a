"""Alerts: one for each matter, until somebody has seen it."""

from pathlib import Path

import pytest
from tests.fakes.server_parts import TestParts, api_client, live_events, make_parts

from covey_server.access.models import Role
from covey_server.errors import NotFoundError
from covey_server.triggers import service
from covey_server.triggers.models import Alert, Severity


@pytest.fixture
def parts(tmp_path: Path) -> TestParts:
    return make_parts(tmp_path)


def raised(parts: TestParts, what: str = "rollout_halted", **more: str) -> Alert:
    with parts.db.begin() as session:
        return service.raise_alert(session, what, now=parts.clock(), **more)  # type: ignore[arg-type]  # a table of texts


def test_the_same_matter_stays_one_alert(parts: TestParts) -> None:
    first = raised(parts, subject="r1", detail="canary failed")
    parts.clock.advance(minutes=1)
    again = raised(parts, subject="r1", detail="canary failed")
    assert (first.id, again.at) == (again.id, parts.clock())
    assert len(live_events(parts, "alert.changed")) == 1


@pytest.mark.parametrize("other", [{"subject": "r2"}, {"subject": "r1", "device": "cam-1"}])
def test_another_subject_or_device_is_another_alert(parts: TestParts, other: dict[str, str]) -> None:
    assert raised(parts, subject="r1").id != raised(parts, **other).id


def test_after_it_was_seen_it_can_be_raised_again(parts: TestParts) -> None:
    first = raised(parts)
    with parts.db.begin() as session:
        assert first.id is not None
        service.acknowledge_alert(session, first.id, actor="user:alice", now=parts.clock())
    assert raised(parts).id != first.id


def test_texts_from_devices_are_cut(parts: TestParts) -> None:
    alert = raised(parts, "x" * 500, detail="y" * 5000)
    assert (len(alert.what), len(alert.detail)) == (64, 1000)


def test_an_unknown_alert_is_not_found(parts: TestParts) -> None:
    with parts.db.begin() as session, pytest.raises(NotFoundError):
        service.acknowledge_alert(session, 7, actor="user:alice", now=parts.clock())


def test_open_alerts_are_counted_by_severity(parts: TestParts) -> None:
    raised(parts)
    with parts.db.begin() as session:
        service.raise_alert(session, "disk_full", severity=Severity.CRITICAL, now=parts.clock())
        assert service.count_open_alerts(session) == {Severity.INFO: 0, Severity.WARNING: 1, Severity.CRITICAL: 1}


def test_the_api_lists_and_acknowledges(parts: TestParts) -> None:
    client = api_client(parts, role=Role.OPERATOR)
    ids = [raised(parts, device=f"cam-{number}").id for number in range(3)]
    listed = client.get("/api/v1/alerts", params={"open": True, "limit": 2}).json()
    assert [alert["id"] for alert in listed["items"]] == [ids[2], ids[1]]
    rest = client.get("/api/v1/alerts", params={"cursor": listed["next"]}).json()
    assert [alert["id"] for alert in rest["items"]] == [ids[0]]
    for _ in range(2):
        seen = client.post(f"/api/v1/alerts/{ids[0]}/acknowledge")
        assert (seen.status_code, seen.json()["acknowledged_by"]) == (200, "token:test-operator")
    assert ids[0] not in [alert["id"] for alert in client.get("/api/v1/alerts", params={"open": True}).json()["items"]]
    assert [alert["id"] for alert in client.get("/api/v1/alerts", params={"device": "cam-1"}).json()["items"]] == [ids[1]]


@pytest.mark.parametrize(("alert", "status"), [("99", 404), ("0", 422), ("x", 422), (str(2**64), 422)])
def test_faulty_alert_numbers_are_refused(parts: TestParts, alert: str, status: int) -> None:
    assert api_client(parts).post(f"/api/v1/alerts/{alert}/acknowledge").status_code == status


def test_a_viewer_acknowledges_nothing(parts: TestParts) -> None:
    assert api_client(parts, role=Role.VIEWER).post("/api/v1/alerts/1/acknowledge").status_code == 403
