"""Renewal: for the device that asks, with a fresh key, a few times a day; the old certificate goes when the new one is in use."""

import base64
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from sqlmodel import select
from tests.fakes.pki import make_csr, make_key
from tests.fakes.server_parts import TestParts, api_client, enrol, invite, make_parts, sent_messages

from covey_contract.codec import decode, digest_of, encode
from covey_contract.messages import Profile, Renewal, RenewalAnswer, Reported
from covey_server.devices import certificates, handlers, service
from covey_server.devices.certificates import proof_text
from covey_server.devices.invitation_token import read_token
from covey_server.devices.models import Certificate, Device
from covey_server.errors import UnavailableError
from covey_server.mqtt.router import Router

RENEW, ANSWERS = "covey/v1/d/cam-1/up/renew", "covey/v1/d/cam-1/down/certificate"


@pytest.fixture
def parts(tmp_path: Path) -> TestParts:
    return make_parts(tmp_path)


@pytest.fixture
def router(parts: TestParts) -> Router:
    router = Router(parts)
    handlers.register(router)
    enrol(parts, "cam-1")
    parts.clock.advance(days=1)
    return router


def ask(router: Router, csr: str) -> None:
    assert router.route(RENEW, encode(Renewal(csr=csr)))


def settle(parts: TestParts) -> list[RenewalAnswer]:
    certificates.settle(parts.db, parts.permissions, now=parts.clock())
    return [decode(message.payload, RenewalAnswer) for message in sent_messages(parts, ANSWERS)]


def report(router: Router, *, generation: int, certificate: str) -> None:
    reported = Reported(generation=generation, agent_version="1", profile=Profile.DEVICE, at=1, certificate=certificate)
    assert router.route("covey/v1/d/cam-1/up/reported", encode(reported))


def serials(parts: TestParts) -> dict[str, bool]:
    """Every certificate of the fleet, and whether it is in force."""
    with parts.db.read() as session:
        rows = session.exec(select(Certificate)).all()
        return {row.serial: row.revoked_at is None for row in sorted(rows, key=lambda row: row.issued_at)}


def test_a_device_gets_a_certificate_for_its_fresh_key(parts: TestParts, router: Router) -> None:
    key = make_key()
    csr = make_csr("cam-1", key=key)
    ask(router, csr)
    (answer,) = settle(parts)
    certificate = x509.load_pem_x509_certificate(answer.certificate.encode())
    assert certificate.public_key() == key.public_key()
    assert certificate.subject.rfc4514_string() == "CN=cam-1"
    assert answer.request == digest_of(csr.encode())
    with parts.db.read() as session:
        assert session.get_one(Device, "cam-1").certificate_serial == f"{certificate.serial_number:x}"


def test_the_broker_knows_a_certificate_before_its_device_has_it(parts: TestParts, router: Router) -> None:
    ask(router, make_csr("cam-1"))
    assert sent_messages(parts, ANSWERS) == []
    parts.permissions.error = UnavailableError("the broker is away")
    with pytest.raises(UnavailableError):
        settle(parts)
    assert sent_messages(parts, ANSWERS) == []
    parts.permissions.error = None
    assert len(settle(parts)) == 1
    assert len({right.user for right in parts.permissions.rights if right.revoked_at is None}) == 2
    assert len(settle(parts)) == 1  # and only once


def test_the_old_certificate_stays_until_the_new_one_is_used(parts: TestParts, router: Router) -> None:
    ask(router, make_csr("cam-1"))
    settle(parts)
    old, new = serials(parts)
    assert serials(parts) == {old: True, new: True}
    report(router, generation=1, certificate=old)
    assert serials(parts) == {old: True, new: True}
    report(router, generation=2, certificate=new)
    assert serials(parts) == {old: False, new: True}
    assert [right.serial for right in certificates.broker_rights(parts.db) if right.revoked_at is None] == [new]


def test_a_device_cannot_retire_what_is_another_ones(parts: TestParts, router: Router) -> None:
    other = enrol(parts, "cam-2").certificate_serial
    report(router, generation=1, certificate=other)
    report(router, generation=2, certificate="no such serial")
    assert all(serials(parts).values())


@pytest.mark.parametrize("csr", [make_csr("cam-2"), make_csr(["cam-1", "cam-2"]), "no request"])
def test_a_request_for_another_name_is_refused(parts: TestParts, router: Router, csr: str) -> None:
    ask(router, csr)
    (answer,) = settle(parts)
    assert answer.certificate == ""
    assert answer.reason
    assert len(serials(parts)) == 1


def test_asking_again_gives_the_same_certificate_and_is_not_counted(parts: TestParts, router: Router) -> None:
    csr = make_csr("cam-1")
    for _ in range(20):
        ask(router, csr)
        settle(parts)
    answers = settle(parts)
    assert len({answer.certificate for answer in answers}) == 1
    assert len(serials(parts)) == 2


def test_a_device_gets_only_so_many_certificates_a_day(parts: TestParts, router: Router) -> None:
    limit = parts.settings.pki.max_renewals_per_day
    for _ in range(limit + 1):
        parts.clock.advance(minutes=1)
        ask(router, make_csr("cam-1"))
    refused = [answer for answer in settle(parts) if not answer.certificate]
    assert len(refused) == 1
    assert refused[0].retry_after_s > 0
    parts.clock.advance(hours=25)
    ask(router, make_csr("cam-1"))
    assert settle(parts)[-1].certificate


def test_a_revoked_device_gets_nothing(parts: TestParts, router: Router) -> None:
    with parts.db.begin() as session:
        service.revoke_device(session, "cam-1", actor="user:test", now=parts.clock())
    assert not router.route(RENEW, encode(Renewal(csr=make_csr("cam-1"))))
    assert settle(parts) == []


def test_a_certificate_that_was_issued_and_not_delivered_dies_with_the_device(parts: TestParts, router: Router) -> None:
    ask(router, make_csr("cam-1"))
    with parts.db.begin() as session:
        service.revoke_device(session, "cam-1", actor="user:test", now=parts.clock())
    assert settle(parts) == []
    assert not any(serials(parts).values())


class Expired:
    """A device with its old key, whose certificate the broker does not take any more."""

    def __init__(self, parts: TestParts) -> None:
        self.parts, self.key = parts, make_key()
        _, text = invite(parts, "cam-1")
        with parts.db.begin() as session:
            enrolled = service.enrol_device(
                session,
                token=read_token(text)["t"],
                device="cam-1",
                csr=make_csr("cam-1", key=self.key),
                supernode_public_key="",
                profile="device",
                agent_version="1",
                authority=parts.authority,
                now=parts.clock(),
            )
        self.serial = enrolled.device.certificate_serial

    def renew(self, csr: str, *, key: ec.EllipticCurvePrivateKey | None = None, **changes: str) -> tuple[int, dict[str, str]]:
        signature = (key or self.key).sign(proof_text(changes.get("device", "cam-1"), csr), ec.ECDSA(hashes.SHA256()))
        body = {"device": "cam-1", "serial": self.serial, "csr": csr, "signature": base64.b64encode(signature).decode(), **changes}
        answer = api_client(self.parts, role=None).post("/edge/v1/renew", json=body)
        return answer.status_code, answer.json()


@pytest.fixture
def expired(parts: TestParts) -> Expired:
    device = Expired(parts)
    parts.clock.advance(days=parts.settings.pki.device_days + 30)
    return device


def test_an_expired_certificate_is_renewed_by_its_key(parts: TestParts, expired: Expired) -> None:
    key = make_key()
    status, body = expired.renew(make_csr("cam-1", key=key))
    assert status == 200
    assert x509.load_pem_x509_certificate(body["certificate"].encode()).public_key() == key.public_key()
    assert parts.permissions.allowed == ["cam-1"]
    assert settle(parts) == []  # it has it already


def test_without_the_old_key_nobody_renews(parts: TestParts, expired: Expired) -> None:
    csr = make_csr("cam-1")
    assert expired.renew(csr, key=make_key())[0] == 401
    assert expired.renew(csr, signature="not base64")[0] == 401
    assert expired.renew(csr, serial="abc")[0] == 401
    enrol(parts, "cam-2")
    assert expired.renew(make_csr("cam-2"), device="cam-2")[0] == 401
    signed_for_another = base64.b64encode(expired.key.sign(proof_text("cam-1", make_csr("cam-1")), ec.ECDSA(hashes.SHA256()))).decode()
    assert expired.renew(csr, signature=signed_for_another)[0] == 401
    assert len(serials(parts)) == 2


def test_after_the_grace_time_only_an_invitation_helps(parts: TestParts, expired: Expired) -> None:
    parts.clock.advance(days=parts.settings.pki.grace_days)
    status, body = expired.renew(make_csr("cam-1"))
    assert status == 403
    assert "invitation" in body["detail"]


def test_a_revoked_or_retired_certificate_is_never_renewed(parts: TestParts, expired: Expired) -> None:
    with parts.db.begin() as session:
        session.get_one(Certificate, expired.serial).revoked_at = parts.clock()
    assert expired.renew(make_csr("cam-1"))[0] == 403
    with parts.db.begin() as session:
        session.get_one(Certificate, expired.serial).revoked_at = None
        service.revoke_device(session, "cam-1", actor="user:test", now=parts.clock())
    assert expired.renew(make_csr("cam-1"))[0] == 403


def test_devices_whose_certificate_runs_out_are_found(parts: TestParts) -> None:
    enrol(parts, "cam-1")
    parts.clock.advance(days=100)
    enrol(parts, "cam-2")
    soon = parts.clock() + timedelta(days=parts.settings.pki.device_days - 90)
    with parts.db.read() as session:
        assert [device.id for device in certificates.expiring(session, before=soon)] == ["cam-1"]
