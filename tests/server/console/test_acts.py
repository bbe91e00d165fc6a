"""Buttons: only with the login's token, only for operators, only when the state allows it."""

import pytest
from sqlmodel import col, select
from tests.fakes.console_data import COMPLETED, HALTED
from tests.server.console.conftest import Desk

from covey_contract.codec import decode
from covey_contract.messages import Signed
from covey_server.access.models import Role
from covey_server.audit.models import AuditEvent
from covey_server.devices.models import QuarantineEntry
from covey_server.rollouts.models import DesiredState, Rollout, RolloutState
from covey_server.triggers.models import Alert


def put(desk: Desk, state: RolloutState) -> None:
    with desk.db.begin() as session:
        session.get_one(Rollout, HALTED).state = state


def state_of(desk: Desk, rollout: str = HALTED) -> RolloutState:
    with desk.db.read() as session:
        return session.get_one(Rollout, rollout).state


def test_an_operator_pauses_and_resumes_a_rollout(desk: Desk) -> None:
    put(desk, RolloutState.RUNNING)
    answer = desk.post(f"/rollouts/{HALTED}/pause")
    assert (answer.status_code, answer.headers["location"]) == (303, f"/rollouts/{HALTED}")
    assert state_of(desk) is RolloutState.PAUSED
    desk.post(f"/rollouts/{HALTED}/resume")
    assert state_of(desk) is RolloutState.RUNNING
    with desk.db.read() as session:
        acts = session.exec(select(AuditEvent.actor, AuditEvent.action).where(AuditEvent.actor == "user:operator")).all()
    assert acts == [("user:operator", "rollout.paused"), ("user:operator", "rollout.resumed")]


@pytest.mark.parametrize("act", ["start", "pause", "resume", "cancel"])
def test_a_rollout_that_has_ended_is_left_alone(desk: Desk, act: str) -> None:
    answer = desk.post(f"/rollouts/{COMPLETED}/{act}")
    assert answer.status_code == 409
    assert "is completed" in answer.text
    assert state_of(desk, COMPLETED) is RolloutState.COMPLETED


@pytest.mark.parametrize("act", ["start", "pause", "resume", "cancel"])
def test_a_viewer_changes_nothing(desk: Desk, act: str) -> None:
    put(desk, RolloutState.RUNNING)
    assert desk.post(f"/rollouts/{HALTED}/{act}", role=Role.VIEWER).status_code == 403
    assert state_of(desk) is RolloutState.RUNNING


@pytest.mark.parametrize("csrf", ["", "csrf-viewer", "é"])
def test_a_form_without_its_token_changes_nothing(desk: Desk, csrf: str) -> None:
    put(desk, RolloutState.RUNNING)
    assert desk.post(f"/rollouts/{HALTED}/pause", csrf=csrf).status_code == 403
    assert state_of(desk) is RolloutState.RUNNING


def test_a_form_without_a_login_leads_to_the_login(desk: Desk) -> None:
    assert desk.post(f"/rollouts/{HALTED}/pause", role=None).headers["location"] == "/login"


def test_an_alert_is_acknowledged_by_name(desk: Desk) -> None:
    with desk.db.read() as session:
        open_alert = session.exec(select(Alert).where(Alert.what == "rollout_halted")).one()
    assert desk.post(f"/alerts/{open_alert.id}/acknowledge").status_code == 303
    with desk.db.read() as session:
        assert session.get_one(Alert, open_alert.id).acknowledged_by == "user:operator"


def test_an_operator_releases_a_quarantined_digest(desk: Desk) -> None:
    with desk.db.read() as session:
        entry = session.exec(select(QuarantineEntry).where(col(QuarantineEntry.released_at).is_(None))).first()
    assert entry is not None
    page, act = f"/devices/{entry.device_id}", f"/devices/{entry.device_id}/quarantine/{entry.digest}/release"
    assert act in desk.get(page, role=Role.OPERATOR).text
    assert act not in desk.get(page).text, "a viewer has no button"
    assert desk.post(act, role=Role.VIEWER).status_code == 403
    assert desk.post(act).headers["location"] == page
    with desk.db.read() as session:
        event = session.exec(select(AuditEvent).where(AuditEvent.action == "quarantine.released")).one()
        desired = session.get_one(DesiredState, entry.device_id)
        assert entry.digest.encode() in decode(desired.signed, Signed).payload
        assert (event.actor, event.subject) == ("user:operator", entry.device_id)
