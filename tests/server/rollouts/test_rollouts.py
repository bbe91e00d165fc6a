"""Rollouts from draft to end, on a real database, with devices that report what a test says."""

from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest
from sqlmodel import Session, select
from tests.server.releases.bench import Bench, import_spec, make_bench

from covey_contract.codec import decode, decode_order
from covey_contract.ids import parse_device_id
from covey_contract.messages import DeploymentReport, DeploymentState, Desired, Signed
from covey_server.audit.models import AuditEvent
from covey_server.devices.models import Device, DeviceState
from covey_server.errors import ConflictError, InvalidInputError, NotFoundError
from covey_server.outbox import LiveEvent, OutboxMessage
from covey_server.releases.imports import import_release, store_file
from covey_server.releases.service import id_of, withdraw_release
from covey_server.rollouts import progress
from covey_server.rollouts.desired import republish_desired
from covey_server.rollouts.handlers import on_reported
from covey_server.rollouts.models import DesiredState, Rollout, RolloutDevice, RolloutDeviceState, RolloutState
from covey_server.rollouts.progress import tick_rollouts
from covey_server.rollouts.service import cancel_rollout, create_rollout, get_rollout, pause_rollout, resume_rollout, start_rollout
from covey_server.triggers.models import Alert

S = RolloutDeviceState
D = DeploymentState


class Fleet(Bench):
    """A bench with rollouts in it."""

    def release(self, content: bytes) -> int:
        file = self.parts.settings.path("artifact.onnx")
        file.write_bytes(content)
        with self.parts.db.begin() as session:
            release = import_release(
                session,
                import_spec(),
                {"onnx-int8.onnx": store_file(file, self.parts.blobs)},
                unmeasured=False,
                max_accuracy_drop=0.01,
                blobs=self.parts.blobs,
                repository=self.repository,
                now=self.clock(),
                actor="token:test",
            )
            return id_of(release)

    def rollout(self, release: int, *, canary: str = "pi-1", started: bool = True, **more: object) -> str:
        phases = [{"name": "canary", "devices": [canary]}, {"name": "rest"}]
        options = {"selector": {"all": True}, "phases": phases, "probation_s": 30.0, "deadline_s": 60.0} | more
        with self.parts.db.begin() as session:
            rollout = create_rollout(session, release, actor="token:test", now=self.clock(), **options)  # type: ignore[arg-type]  # options of several types
        if started:
            with self.parts.db.begin() as session:
                start_rollout(session, rollout.id, director=self.parts.director, actor="token:test", now=self.clock())
        return rollout.id

    def report(self, device: str, state: DeploymentState, *, reason: str = "", deployment: str = "", chunks: int = 0) -> None:
        with self.parts.db.begin() as session:
            newest = select(RolloutDevice).where(RolloutDevice.device_id == device).order_by(RolloutDevice.id.desc())  # type: ignore[union-attr]  # a column
            part = session.exec(newest).first()
            assert part is not None
            report = DeploymentReport(
                deployment=deployment or part.deployment_id,
                model="digits",
                version=2,
                state=state,
                reason=reason,
                variant="onnx-int8",
                chunks_done=chunks,
            )
            on_reported(self.parts, session, parse_device_id(device), self.device_reports(session, device, report))

    def tick(self, seconds: float = 1.0) -> None:
        tick_rollouts(self.parts, self.clock.advance(seconds))

    def state(self, rollout: str) -> RolloutState:
        with self.parts.db.read() as session:
            return get_rollout(session, rollout).state

    def reason(self, rollout: str) -> str:
        with self.parts.db.read() as session:
            return get_rollout(session, rollout).reason

    def parts_of(self, rollout: str) -> dict[str, RolloutDevice]:
        with self.parts.db.read() as session:
            return {part.device_id: part for part in session.exec(select(RolloutDevice).where(RolloutDevice.rollout_id == rollout))}

    def states(self, rollout: str) -> dict[str, RolloutDeviceState]:
        return {device: part.state for device, part in self.parts_of(rollout).items()}

    def desired(self, device: str) -> Desired:
        with self.parts.db.read() as session:
            row = session.get_one(DesiredState, device)
            order = decode_order(decode(row.signed, Signed))
            assert isinstance(order, Desired)
            assert order.generation == row.generation
            return order

    def serves(self, device: str, version: int) -> None:
        with self.parts.db.begin() as session:
            row = session.get_one(Device, device)
            row.serving_model, row.serving_version = "digits", version


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    bench = make_bench(tmp_path)
    fleet = Fleet(bench.parts, bench.clock, bench.repository)
    fleet.add_devices("pi-1", "pi-2", "pi-3")
    fleet.add_devices("hospital", profile="partner")
    return fleet


def test_the_canary_goes_first_and_the_rest_follow_after_its_success(fleet: Fleet) -> None:
    rollout = fleet.rollout(fleet.release(b"v1"))
    assert fleet.states(rollout) == {"pi-1": S.SENT, "pi-2": S.PENDING, "pi-3": S.PENDING}
    for state in (D.FETCHING, D.VERIFYING, D.STAGED, D.ACTIVATING, D.PROBATION):
        fleet.report("pi-1", state)
        assert fleet.states(rollout) == {"pi-1": S.ACTIVE, "pi-2": S.PENDING, "pi-3": S.PENDING}
    fleet.report("pi-1", D.COMMITTED)
    assert fleet.states(rollout) == {"pi-1": S.SUCCEEDED, "pi-2": S.SENT, "pi-3": S.SENT}
    for device in ("pi-2", "pi-3"):
        fleet.report(device, D.COMMITTED)
    assert fleet.state(rollout) is RolloutState.COMPLETED


def test_orders_are_signed_retained_and_name_the_release(fleet: Fleet) -> None:
    release = fleet.release(b"v1")
    rollout = fleet.rollout(release)
    desired = fleet.desired("pi-1")
    assert desired.release is not None
    assert (desired.device, desired.release.model, desired.release.version, desired.probation_s) == ("pi-1", "digits", 1, 30.0)
    assert desired.deployment == fleet.parts_of(rollout)["pi-1"].deployment_id
    with fleet.parts.db.read() as session:
        messages = session.exec(select(OutboxMessage)).all()
    assert [(message.topic, message.retain) for message in messages] == [("covey/v1/d/pi-1/down/desired", True)]


def test_a_failed_canary_halts_and_the_others_never_get_it(fleet: Fleet) -> None:
    rollout = fleet.rollout(fleet.release(b"poison"))
    fleet.report("pi-1", D.FETCHING)
    fleet.report("pi-1", D.ROLLED_BACK, reason="the worker crashed with SIGSEGV")
    assert fleet.state(rollout) is RolloutState.HALTED
    assert fleet.reason(rollout) == "phase canary: 1 failed, 0 allowed: pi-1: the worker crashed with SIGSEGV"
    assert fleet.states(rollout) == {"pi-1": S.FAILED, "pi-2": S.SKIPPED, "pi-3": S.SKIPPED}
    with fleet.parts.db.read() as session:
        assert session.get(DesiredState, "pi-2") is None
        alert = session.exec(select(Alert)).one()
        assert (alert.what, alert.subject) == ("rollout_halted", rollout)
        assert "rollout.halted" in [event.action for event in session.exec(select(AuditEvent))]
        assert session.exec(select(LiveEvent).where(LiveEvent.name == "rollout.changed")).all()[-1].data["state"] == "halted"


def test_the_device_that_rolled_back_is_told_to_keep_what_it_has(fleet: Fleet) -> None:
    fleet.rollout(fleet.release(b"poison"))
    before = fleet.desired("pi-1").generation
    fleet.report("pi-1", D.ROLLED_BACK)
    after = fleet.desired("pi-1")
    assert (after.release, after.generation) == (None, before + 1)


def test_devices_that_committed_a_bad_release_are_sent_back(fleet: Fleet) -> None:
    old = fleet.release(b"good")
    for device in ("pi-1", "pi-2", "pi-3"):
        fleet.serves(device, 1)
    rollout = fleet.rollout(fleet.release(b"bad"))
    fleet.report("pi-1", D.COMMITTED)
    fleet.report("pi-2", D.PROBATION)
    fleet.report("pi-3", D.ROLLED_BACK, reason="wrong answers")
    assert fleet.state(rollout) is RolloutState.HALTED
    parts = fleet.parts_of(rollout)
    for device in ("pi-1", "pi-2"):
        desired = fleet.desired(device)
        assert desired.release is not None
        assert desired.release.version == 1
        assert desired.deployment == parts[device].revert_deployment_id
        assert parts[device].previous_release_id == old
    fleet.report("pi-2", D.ROLLED_BACK, reason="superseded by generation 2")
    assert fleet.states(rollout)["pi-2"] is S.SKIPPED
    for device in ("pi-1", "pi-2"):
        fleet.report(device, D.COMMITTED, deployment=parts[device].revert_deployment_id)
    parts = fleet.parts_of(rollout)
    assert parts["pi-1"].reverted_at is not None
    assert fleet.states(rollout) == {"pi-1": S.SUCCEEDED, "pi-2": S.SKIPPED, "pi-3": S.FAILED}


def test_without_revert_on_halt_they_keep_it(fleet: Fleet) -> None:
    fleet.release(b"good")
    fleet.serves("pi-1", 1)
    fleet.rollout(fleet.release(b"bad"), revert_on_halt=False)
    fleet.report("pi-1", D.COMMITTED)
    fleet.report("pi-2", D.ROLLED_BACK)
    desired = fleet.desired("pi-1")
    assert desired.release is not None
    assert desired.release.version == 2


def test_a_withdrawn_old_release_is_no_way_back(fleet: Fleet) -> None:
    old = fleet.release(b"good")
    fleet.serves("pi-1", 1)
    fleet.rollout(fleet.release(b"bad"))
    fleet.report("pi-1", D.COMMITTED)
    with fleet.parts.db.begin() as session:
        withdraw_release(session, old, repository=fleet.repository, actor="user:x")
    fleet.report("pi-2", D.ROLLED_BACK)
    assert fleet.desired("pi-1").release is None


def test_a_success_that_rolls_back_later_halts(fleet: Fleet) -> None:
    rollout = fleet.rollout(fleet.release(b"slow poison"))
    fleet.report("pi-1", D.COMMITTED)
    fleet.report("pi-1", D.ROLLED_BACK, reason="error rate 0.4")
    assert fleet.states(rollout)["pi-1"] is S.FAILED
    assert fleet.state(rollout) is RolloutState.HALTED


def test_a_rollback_after_completion_reopens_the_verdict(fleet: Fleet) -> None:
    rollout = fleet.rollout(fleet.release(b"v1"))
    for device in ("pi-1", "pi-2", "pi-3"):
        fleet.report(device, D.COMMITTED)
    fleet.report("pi-2", D.ROLLING_BACK, reason="late")
    fleet.report("pi-2", D.ROLLED_BACK, reason="late")
    assert fleet.state(rollout) is RolloutState.COMPLETED, "one bad disk must not take a whole fleet back"
    assert fleet.states(rollout)["pi-2"] is S.FAILED
    assert fleet.reason(rollout) == "reopened: pi-2 went back after its success: late"
    with fleet.parts.db.read() as session:
        assert sorted(alert.what for alert in session.exec(select(Alert))) == ["device_rolled_back", "rollout_reopened"]
        assert session.exec(select(AuditEvent).where(AuditEvent.action == "rollout.reopened")).one().subject == rollout
    assert fleet.desired("pi-1").release is not None


def test_fewer_reversions_than_the_phase_allows_are_told_by_a_warning_only(fleet: Fleet) -> None:
    rollout = fleet.rollout(fleet.release(b"v1"), phases=[{"name": "all", "max_failures": 1}])
    for device in ("pi-1", "pi-2", "pi-3"):
        fleet.report(device, D.COMMITTED)
    fleet.report("pi-2", D.ROLLED_BACK, reason="late")
    assert "pi-2" in fleet.reason(rollout)
    with fleet.parts.db.read() as session:
        assert [alert.what for alert in session.exec(select(Alert))] == ["device_rolled_back"]


def test_a_silent_device_counts_as_failed(fleet: Fleet) -> None:
    rollout = fleet.rollout(fleet.release(b"v1"))
    fleet.tick(59)
    assert fleet.state(rollout) is RolloutState.RUNNING
    fleet.tick(2)
    assert fleet.states(rollout)["pi-1"] is S.UNRESPONSIVE
    assert fleet.reason(rollout) == "phase canary: 1 did not answer, 0 allowed: pi-1: nothing heard for 60 s"


def test_progress_moves_the_deadline_and_mere_repetition_does_not(fleet: Fleet) -> None:
    rollout = fleet.rollout(fleet.release(b"v1"))
    for chunks in (1, 2, 3):
        fleet.tick(50)
        fleet.report("pi-1", D.FETCHING, chunks=chunks)
    fleet.tick(50)
    fleet.report("pi-1", D.FETCHING, chunks=3)
    assert fleet.state(rollout) is RolloutState.RUNNING
    fleet.tick(20)
    assert fleet.state(rollout) is RolloutState.HALTED
    assert "no progress after fetching" in fleet.reason(rollout)


def test_an_allowed_failure_lets_the_rollout_go_on(fleet: Fleet) -> None:
    phases = [{"name": "canary", "devices": ["pi-1", "pi-2"], "max_failures": 1}, {"name": "rest"}]
    rollout = fleet.rollout(fleet.release(b"v1"), phases=phases)
    fleet.report("pi-1", D.ROLLED_BACK)
    fleet.report("pi-2", D.COMMITTED)
    assert fleet.states(rollout)["pi-3"] is S.SENT
    fleet.report("pi-3", D.COMMITTED)
    assert fleet.state(rollout) is RolloutState.COMPLETED


def test_a_paused_rollout_tells_nobody_and_goes_on_when_resumed(fleet: Fleet) -> None:
    rollout = fleet.rollout(fleet.release(b"v1"))
    with fleet.parts.db.begin() as session:
        pause_rollout(session, rollout, actor="user:x")
    fleet.report("pi-1", D.COMMITTED)
    fleet.tick()
    assert fleet.states(rollout)["pi-2"] is S.PENDING
    with fleet.parts.db.begin() as session:
        resume_rollout(session, rollout, actor="user:x")
    fleet.tick()
    assert fleet.states(rollout)["pi-2"] is S.SENT


def test_a_paused_rollout_still_halts(fleet: Fleet) -> None:
    rollout = fleet.rollout(fleet.release(b"v1"))
    with fleet.parts.db.begin() as session:
        pause_rollout(session, rollout, actor="user:x")
    fleet.report("pi-1", D.ROLLED_BACK)
    assert fleet.state(rollout) is RolloutState.HALTED


def test_a_cancelled_rollout_takes_its_orders_back(fleet: Fleet) -> None:
    fleet.release(b"good")
    fleet.serves("pi-1", 1)
    rollout = fleet.rollout(fleet.release(b"v2"))
    with fleet.parts.db.begin() as session:
        cancel_rollout(session, rollout, director=fleet.parts.director, actor="user:x", now=fleet.clock())
    assert fleet.states(rollout) == {"pi-1": S.SENT, "pi-2": S.SKIPPED, "pi-3": S.SKIPPED}
    desired = fleet.desired("pi-1")
    assert desired.release is not None
    assert desired.release.version == 1
    fleet.report("pi-1", D.COMMITTED, deployment=desired.deployment)
    assert fleet.states(rollout)["pi-1"] is S.SKIPPED
    assert fleet.state(rollout) is RolloutState.CANCELLED


def test_withdrawing_a_release_halts_its_rollout(fleet: Fleet) -> None:
    release = fleet.release(b"v1")
    rollout = fleet.rollout(release)
    with fleet.parts.db.begin() as session:
        withdraw_release(session, release, repository=fleet.repository, actor="user:x", reason="licence")
    fleet.tick()
    assert fleet.state(rollout) is RolloutState.HALTED
    assert fleet.reason(rollout) == "release digits/1 was withdrawn: licence"


def test_partners_and_revoked_devices_are_left_out(fleet: Fleet) -> None:
    with fleet.parts.db.begin() as session:
        session.get_one(Device, "pi-3").state = DeviceState.REVOKED
    assert set(fleet.states(fleet.rollout(fleet.release(b"v1")))) == {"pi-1", "pi-2"}


def test_a_device_revoked_before_its_turn_is_skipped(fleet: Fleet) -> None:
    rollout = fleet.rollout(fleet.release(b"v1"))
    with fleet.parts.db.begin() as session:
        session.get_one(Device, "pi-3").state = DeviceState.REVOKED
    fleet.report("pi-1", D.COMMITTED)
    assert fleet.states(rollout) == {"pi-1": S.SUCCEEDED, "pi-2": S.SENT, "pi-3": S.SKIPPED}


@pytest.mark.parametrize(
    ("selector", "error"),
    [
        ({"devices": ["nobody"]}, NotFoundError),
        ({"devices": []}, InvalidInputError),
        ({"devices": ["hospital"]}, InvalidInputError),
        ({"labels": {"site": "nowhere"}}, InvalidInputError),
        ({"all": False}, InvalidInputError),
        ({"all": True, "devices": ["pi-1"]}, InvalidInputError),
        ({}, InvalidInputError),
    ],
)
def test_a_selector_that_means_nothing_is_refused(fleet: Fleet, selector: dict[str, object], error: type[Exception]) -> None:
    with pytest.raises(error):
        fleet.rollout(fleet.release(b"v1"), selector=selector)


def test_labels_select(fleet: Fleet) -> None:
    fleet.add_devices("lab-1", "lab-2", labels={"site": "lab"})
    rollout = fleet.rollout(fleet.release(b"v1"), canary="lab-1", selector={"labels": {"site": "lab"}})
    assert set(fleet.states(rollout)) == {"lab-1", "lab-2"}


def test_a_canary_outside_the_selection_is_refused(fleet: Fleet) -> None:
    with pytest.raises(InvalidInputError, match="not selected"):
        fleet.rollout(fleet.release(b"v1"), selector={"devices": ["pi-2"]})


@pytest.mark.parametrize("phases", [[{"name": "x", "unknown": 1}], [{"count": 1}], [{"name": "X!"}], [{"name": "a", "count": "many"}]])
def test_ill_formed_phases_are_refused(fleet: Fleet, phases: list[dict[str, object]]) -> None:
    with pytest.raises(InvalidInputError):
        fleet.rollout(fleet.release(b"v1"), phases=phases)


def test_a_device_takes_part_in_one_rollout_at_a_time(fleet: Fleet) -> None:
    fleet.rollout(fleet.release(b"v1"))
    with pytest.raises(ConflictError, match="still takes part"):
        fleet.rollout(fleet.release(b"v2"))


@pytest.mark.parametrize("act", [pause_rollout, resume_rollout])
def test_an_act_that_the_state_does_not_allow_is_refused(fleet: Fleet, act: Callable[..., Rollout]) -> None:
    rollout = fleet.rollout(fleet.release(b"v1"), started=False)
    with fleet.parts.db.begin() as session, pytest.raises(ConflictError, match="is draft"):
        act(session, rollout, actor="user:x")


def test_an_unpublished_release_cannot_be_shipped(fleet: Fleet) -> None:
    release = fleet.release(b"v1")
    with fleet.parts.db.begin() as session:
        withdraw_release(session, release, repository=fleet.repository, actor="user:x")
    with pytest.raises(ConflictError, match="only a published"):
        fleet.rollout(release)


def test_generations_rise_over_what_a_device_has_acted_upon(fleet: Fleet) -> None:
    with fleet.parts.db.begin() as session:
        fleet.device_reports(session, "pi-1", None, desired_generation=41)
    fleet.rollout(fleet.release(b"v1"))
    assert fleet.desired("pi-1").generation == 42


@pytest.mark.parametrize("lie", [2**31 - 1, 2**53 + 1, 2**63 - 1])
def test_a_device_that_claims_an_impossible_generation_stops_nobody(fleet: Fleet, lie: int) -> None:
    with fleet.parts.db.begin() as session:
        fleet.device_reports(session, "pi-1", None, desired_generation=lie)
    rollout = fleet.rollout(fleet.release(b"v1"))
    assert fleet.desired("pi-1").generation == 1
    fleet.report("pi-1", D.COMMITTED)
    fleet.tick()
    assert fleet.states(rollout)["pi-2"] is S.SENT


def test_a_rollout_that_cannot_go_on_does_not_keep_others_from_halting(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    release = fleet.release(b"v1")
    first = fleet.rollout(release, canary="pi-1", selector={"devices": ["pi-1"]})
    second = fleet.rollout(release, canary="pi-2", selector={"devices": ["pi-2"]})

    def give_up(session: Session, rollout: Rollout, now: datetime) -> None:
        if rollout.id == min(first, second):
            raise RuntimeError("a bug")
        give_up_on_silent(session, rollout, now)

    give_up_on_silent = progress._give_up_on_silent
    monkeypatch.setattr(progress, "_give_up_on_silent", give_up)
    fleet.tick(61)
    assert {fleet.state(min(first, second)), fleet.state(max(first, second))} == {RolloutState.RUNNING, RolloutState.HALTED}


def test_a_report_on_an_unknown_deployment_changes_nothing(fleet: Fleet) -> None:
    rollout = fleet.rollout(fleet.release(b"v1"))
    fleet.report("pi-1", D.ROLLED_BACK, deployment="dp-of-another-time")
    assert fleet.states(rollout)["pi-1"] is S.SENT


def test_a_report_on_another_devices_deployment_changes_nothing(fleet: Fleet) -> None:
    rollout = fleet.rollout(fleet.release(b"v1"))
    fleet.report("pi-2", D.ROLLED_BACK, deployment=fleet.parts_of(rollout)["pi-1"].deployment_id)
    assert fleet.states(rollout) == {"pi-1": S.SENT, "pi-2": S.PENDING, "pi-3": S.PENDING}


def test_republish_gives_the_same_bytes_again_but_not_to_revoked_or_new_machines(fleet: Fleet) -> None:
    rollout = fleet.rollout(fleet.release(b"v1"))
    fleet.report("pi-1", D.COMMITTED)
    with fleet.parts.db.begin() as session:
        before = {message.topic: message.payload for message in session.exec(select(OutboxMessage))}
        for message in session.exec(select(OutboxMessage)):
            session.delete(message)
        session.get_one(Device, "pi-2").state = DeviceState.REVOKED
        session.get_one(Device, "pi-3").enrolled_at = fleet.clock.advance(1)
    with fleet.parts.db.begin() as session:
        assert republish_desired(session, fleet.parts.director) == 1
    with fleet.parts.db.read() as session:
        message = session.exec(select(OutboxMessage)).one()
    assert message.topic == "covey/v1/d/pi-1/down/desired"
    assert message.payload == before[message.topic]
    assert fleet.state(rollout) is RolloutState.RUNNING
