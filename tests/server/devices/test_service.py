"""Who gets in, who does not, and who must leave."""

from datetime import timedelta
from pathlib import Path

import pytest
from sqlmodel import select
from tests.fakes.pki import make_csr, make_supernode_key
from tests.fakes.server_parts import TestParts, add_device, enrol, invite, live_events, make_parts, sent_messages

from covey_contract.errors import InvalidIdError
from covey_contract.messages import Profile
from covey_server.audit.models import AuditEvent
from covey_server.devices import service
from covey_server.devices.certificates import active_devices, broker_rights
from covey_server.devices.invitation_token import read_token
from covey_server.devices.models import Certificate, Device, DevicePresence, DeviceState, Invitation
from covey_server.errors import ConflictError, CoveyServerError, ForbiddenError, InvalidInputError, NotFoundError, UnauthenticatedError


@pytest.fixture
def parts(tmp_path: Path) -> TestParts:
    return make_parts(tmp_path)


def try_enrol(
    parts: TestParts, secret: str, *, device: str = "cam-1", csr: str | None = None, profile: str = "device", key: str = ""
) -> Device:
    with parts.db.begin() as session:
        return service.enrol_device(
            session,
            token=secret,
            device=device,
            csr=csr or make_csr(device),
            supernode_public_key=key,
            profile=profile,
            agent_version="0.1.0",
            authority=parts.authority,
            now=parts.clock(),
        ).device


def test_an_invitation_token_holds_what_a_device_needs_to_trust_the_server(parts: TestParts) -> None:
    invitation, text = invite(parts, "cam-1", labels={"site": "lyon"})
    fields = read_token(text)
    assert fields["url"] == parts.settings.edge_url
    assert fields["fp"] == parts.authority.fingerprint()
    assert fields["id"] == "cam-1"
    assert invitation.secret_hash not in text
    assert fields["t"] not in invitation.model_dump_json()


@pytest.mark.parametrize("device", ["a/b", "+", "#", "..", "", "x" * 65, "cam-1\n", "CAM", "cam 1", "../etc", "$sys"])
def test_only_device_ids_are_invited(parts: TestParts, device: str) -> None:
    with pytest.raises(InvalidIdError):
        invite(parts, device)


@pytest.mark.parametrize("device", ["covey-server", "covey-server-bulk"])
def test_names_of_the_server_are_not_invited(parts: TestParts, device: str) -> None:
    with pytest.raises(InvalidInputError):
        invite(parts, device)


@pytest.mark.parametrize("ttl", [timedelta(), timedelta(seconds=-1), timedelta(days=31)])
def test_an_invitation_lasts_a_bounded_time(parts: TestParts, ttl: timedelta) -> None:
    with pytest.raises(InvalidInputError):
        invite(parts, "cam-1", ttl=ttl)


@pytest.mark.parametrize("labels", [{"Site": "x"}, {"site": ""}, {"site": "a\nb"}, {"site": "x" * 65}, {f"l{i}": "x" for i in range(33)}])
def test_labels_are_few_and_plain(parts: TestParts, labels: dict[str, str]) -> None:
    with pytest.raises((InvalidInputError, InvalidIdError)):
        invite(parts, "cam-1", labels=labels)


def test_enrolment_makes_a_device_with_its_certificate_and_leaves_a_record(parts: TestParts) -> None:
    device = enrol(parts, "cam-1", labels={"site": "lyon"})
    assert (device.state, device.presence, device.labels) == (DeviceState.ACTIVE, DevicePresence.NEVER, {"site": "lyon"})
    with parts.db.read() as session:
        certificate = session.exec(select(Certificate)).one()
        actions = [event.action for event in session.exec(select(AuditEvent))]
    assert certificate.serial == device.certificate_serial
    assert certificate.device_id == "cam-1"
    assert actions == ["device.invited", "device.enrolled"]
    assert [event.data["device"] for event in live_events(parts, "device.changed")] == ["cam-1"]


def test_a_token_works_once(parts: TestParts) -> None:
    secret = read_token(invite(parts, "cam-1")[1])["t"]
    try_enrol(parts, secret)
    with pytest.raises(ConflictError, match="used already"):
        try_enrol(parts, secret)


@pytest.mark.parametrize("secret", ["", "wrong", "A" * 43, "\ud800", "' OR 1=1 --"])
def test_an_unknown_token_is_refused(parts: TestParts, secret: str) -> None:
    invite(parts, "cam-1")
    with pytest.raises(UnauthenticatedError):
        try_enrol(parts, secret)


def test_an_expired_token_is_refused(parts: TestParts) -> None:
    secret = read_token(invite(parts, "cam-1", ttl=timedelta(hours=1))[1])["t"]
    parts.clock.advance(hours=1)
    with pytest.raises(ForbiddenError, match="expired"):
        try_enrol(parts, secret)


def test_a_withdrawn_token_is_refused(parts: TestParts) -> None:
    invitation, text = invite(parts, "cam-1")
    with parts.db.begin() as session:
        service.withdraw_invitation(session, invitation.id, actor="user:test", now=parts.clock())
    with pytest.raises(ForbiddenError, match="withdrawn"):
        try_enrol(parts, read_token(text)["t"])


def test_a_newer_invitation_ends_the_older_one(parts: TestParts) -> None:
    first = read_token(invite(parts, "cam-1")[1])["t"]
    second = read_token(invite(parts, "cam-1")[1])["t"]
    with pytest.raises(ForbiddenError):
        try_enrol(parts, first)
    try_enrol(parts, second)


def test_a_token_admits_only_the_device_that_it_names(parts: TestParts) -> None:
    secret = read_token(invite(parts, "cam-1")[1])["t"]
    with pytest.raises(ForbiddenError):
        try_enrol(parts, secret, device="cam-2")


@pytest.mark.parametrize(
    "fault",
    [{"csr": make_csr("cam-2")}, {"csr": "broken"}, {"profile": "partner"}, {"profile": "boss"}, {"key": "ssh-rsa AAAA"}],
    ids=["other name", "broken request", "other profile", "unknown profile", "broken key"],
)
def test_a_faulty_enrolment_changes_nothing_and_leaves_the_token_good(parts: TestParts, fault: dict[str, str]) -> None:
    secret = read_token(invite(parts, "cam-1")[1])["t"]
    with pytest.raises(CoveyServerError):
        try_enrol(parts, secret, **fault)
    with parts.db.read() as session:
        assert session.exec(select(Device)).all() == []
        assert session.exec(select(Invitation)).one().used_at is None
    try_enrol(parts, secret)


def test_an_active_device_is_not_invited_again(parts: TestParts) -> None:
    enrol(parts, "cam-1")
    with pytest.raises(ConflictError, match="revoke it"):
        invite(parts, "cam-1")


def test_two_devices_cannot_share_a_supernode_key(parts: TestParts) -> None:
    key = make_supernode_key()
    enrol(parts, "cam-1", supernode_key=f"{key} comment@host")
    with pytest.raises(ConflictError, match="another device"):
        enrol(parts, "cam-2", supernode_key=key)


def test_revoking_takes_everything_away_and_is_recorded(parts: TestParts) -> None:
    enrol(parts, "cam-1")
    with parts.db.begin() as session:
        device = service.revoke_device(session, "cam-1", actor="user:test", now=parts.clock())
    assert (device.state, device.presence) == (DeviceState.REVOKED, DevicePresence.OFFLINE)
    with parts.db.read() as session:
        assert session.exec(select(Certificate)).one().revoked_at == parts.clock()
    assert active_devices(broker_rights(parts.db)) == []
    desired = sent_messages(parts, "covey/v1/d/cam-1/down/desired")
    assert [(message.payload, message.retain) for message in desired] == [(b"", True)]


def test_a_revoked_id_can_be_taken_by_a_new_machine_that_starts_afresh(parts: TestParts) -> None:
    first = enrol(parts, "cam-1", labels={"site": "lyon"})
    with parts.db.begin() as session:
        row = session.get_one(Device, "cam-1")
        row.reported_generation, row.serving_model, row.boot = 90, "digits", "b1"
        service.revoke_device(session, "cam-1", actor="user:test", now=parts.clock())
    second = enrol(parts, "cam-1")
    assert second.certificate_serial != first.certificate_serial
    assert (second.reported_generation, second.serving_model, second.boot, second.labels) == (-1, "", "", {})
    assert active_devices(broker_rights(parts.db)) == ["cam-1"]


def test_revoking_twice_is_no_error_and_an_unknown_device_is(parts: TestParts) -> None:
    enrol(parts, "cam-1")
    with parts.db.begin() as session:
        service.revoke_device(session, "cam-1", actor="user:test", now=parts.clock())
        service.revoke_device(session, "cam-1", actor="user:test", now=parts.clock())
        with pytest.raises(NotFoundError):
            service.revoke_device(session, "cam-9", actor="user:test", now=parts.clock())


def test_a_used_invitation_cannot_be_withdrawn(parts: TestParts) -> None:
    invitation, text = invite(parts, "cam-1")
    try_enrol(parts, read_token(text)["t"])
    with parts.db.begin() as session, pytest.raises(ConflictError):
        service.withdraw_invitation(session, invitation.id, actor="user:test", now=parts.clock())


def test_lists_filter_and_continue_after_a_device(parts: TestParts) -> None:
    with parts.db.begin() as session:
        for number in range(5):
            site = "lyon" if number % 2 else "nice"
            add_device(
                session, f"cam-{number}", labels={"site": site}, presence=DevicePresence.ONLINE if number else DevicePresence.OFFLINE
            )
        add_device(session, "hospital", profile="partner", state=DeviceState.REVOKED, serving_model="digits")

        def ids(**filters: object) -> list[str]:
            return [device.id for device in service.list_devices(session, **filters)]  # type: ignore[arg-type]  # a table of filters

        assert ids(after="cam-2", limit=2) == ["cam-3", "cam-4"]
        assert ids(labels={"site": "lyon"}) == ["cam-1", "cam-3"]
        assert ids(labels={"site": "lyon", "floor": "2"}) == []
        assert ids(presence=DevicePresence.OFFLINE) == ["cam-0"]
        assert ids(profile=Profile.PARTNER) == ["hospital"]
        assert ids(state=DeviceState.REVOKED) == ["hospital"]
        assert ids(text="digi") == ["hospital"]
        assert ids(text="%") == []
        assert service.count_devices(session) == {DevicePresence.NEVER: 0, DevicePresence.ONLINE: 4, DevicePresence.OFFLINE: 1}


def test_labels_are_merged_and_none_removes(parts: TestParts) -> None:
    enrol(parts, "cam-1", labels={"site": "lyon", "floor": "2"})
    with parts.db.begin() as session:
        device = service.set_labels(session, "cam-1", {"floor": None, "room": "12"}, actor="user:test")
    assert device.labels == {"room": "12", "site": "lyon"}
