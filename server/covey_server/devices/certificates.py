"""A device's certificates: issued, renewed with a fresh key, retired when a newer one is in use.

- A renewal is for the device whose topic it came on, or that proves that it has the key of its last certificate; nobody else is asked.
- The broker knows a new certificate before the device has it: `settle` first applies the table, then sends what was issued.
- The old certificate stays valid until the device reports a connection by the new one; then everything older is retired. So a copy of
  the device that has not renewed is locked out by the one that has.
- Asking again for the same key gives the same certificate, and is not counted against the day's limit.
"""

import base64
import binascii
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import cast

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from sqlalchemy import func
from sqlmodel import Session, col, select
from sqlmodel.sql.expression import SelectOfScalar

from covey_contract.codec import digest_of, encode
from covey_contract.ids import DeviceId, parse_device_id
from covey_contract.messages import RenewalAnswer
from covey_contract.topics import Channel, device_topic
from covey_server import outbox
from covey_server.audit import service as audit
from covey_server.db import Database
from covey_server.devices.models import Certificate, Device, DeviceState
from covey_server.errors import CoveyServerError, ForbiddenError, ThrottledError, UnauthenticatedError
from covey_server.parts import Authority, BrokerRight, IssuedCertificate, Permissions
from covey_server.settings import PkiSettings

_DAY = timedelta(days=1)
_FAR = datetime(9999, 1, 1, tzinfo=UTC)
PROOF_PREFIX = b"covey renewal\0"  # what is signed by the old key begins with this, so that no other signature can be taken for it


def add_certificate(
    session: Session, row: Device, issued: IssuedCertificate, *, delivered_at: datetime | None, request: str = ""
) -> Certificate:
    """Note a certificate as the device's newest."""
    certificate = Certificate(
        serial=issued.serial,
        device_id=row.id,
        issued_at=issued.issued_at,
        expires_at=issued.expires_at,
        pem=issued.pem,
        broker_user=issued.user,
        key_digest=issued.key_digest,
        request=request,
        delivered_at=delivered_at,
    )
    session.add(certificate)
    row.certificate_serial, row.certificate_expires_at = issued.serial, issued.expires_at
    session.add(row)
    return certificate


def answer_renewal(session: Session, row: Device, csr: str, *, authority: Authority, pki: PkiSettings, now: datetime) -> None:
    """A request that came on the device's own topic: issue, to be delivered by `settle`, or refuse with the reason."""
    request = digest_of(csr.encode("utf-8"))
    try:
        certificate = _renew(session, row, csr, authority=authority, pki=pki, now=now)
    except CoveyServerError as exc:
        retry = exc.retry_after_s if isinstance(exc, ThrottledError) else 0
        _send(session, row.id, RenewalAnswer(request=request, reason=str(exc)[:500], retry_after_s=int(retry)))
        return
    certificate.request, certificate.delivered_at = request, None
    session.add(certificate)


def renew_by_proof(
    session: Session,
    device: str,
    *,
    serial: str,
    csr: str,
    signature: str,
    authority: Authority,
    pki: PkiSettings,
    now: datetime,
) -> Certificate:
    """Renew for whoever has the key of one of the device's certificates, even if that has expired, within the grace time.

    The proof is looked at before anything is said about the device, so that a stranger learns nothing and can order no work but one
    check of a signature. Raises UnauthenticatedError, ForbiddenError, ThrottledError, InvalidInputError.
    """
    device_id = parse_device_id(device)
    old = session.get(Certificate, serial)
    if old is None or old.device_id != device_id or not _is_proof(old.pem, device_id, csr, signature):
        raise UnauthenticatedError("the request is not signed by the key of a certificate that this fleet has issued to this device")
    row = session.get(Device, device_id)
    if row is None or row.state is not DeviceState.ACTIVE or old.revoked_at is not None:
        raise ForbiddenError(f"{device_id} or this certificate of it was revoked: ask for an invitation")
    if now > old.expires_at + timedelta(days=pki.grace_days):
        raise ForbiddenError(
            f"the certificate expired at {old.expires_at:%Y-%m-%d}, more than {pki.grace_days} days ago: ask for an invitation"
        )
    certificate = _renew(session, row, csr, authority=authority, pki=pki, now=now)
    certificate.delivered_at = now
    session.add(certificate)
    return certificate


def settle(db: Database, permissions: Permissions, *, now: datetime) -> int:
    """Deliver what was issued: the broker's table first, then the devices. Returns how many."""
    with db.read() as session:
        waiting = list(session.exec(_undelivered().limit(500)))
    if not waiting:
        return 0
    permissions.apply(broker_rights(db))
    with db.begin() as session:
        for certificate in session.exec(_undelivered().where(col(Certificate.serial).in_([found.serial for found in waiting]))):
            certificate.delivered_at = now
            session.add(certificate)
            _send(session, certificate.device_id, RenewalAnswer(request=certificate.request, certificate=certificate.pem))
    return len(waiting)


def note_used(session: Session, row: Device, serial: str, *, now: datetime) -> None:
    """The device reports by which certificate it is connected: everything that was issued before is retired."""
    used = session.get(Certificate, serial) if serial else None
    if used is None or used.device_id != row.id or used.used_at is not None:
        return
    used.used_at = now
    older = select(Certificate).where(
        Certificate.device_id == row.id,
        Certificate.serial != used.serial,
        col(Certificate.revoked_at).is_(None),
        col(Certificate.issued_at) < used.issued_at,
    )
    for certificate in session.exec(older):
        certificate.revoked_at = now
        session.add(certificate)
        audit.record(session, "certificate.retired", actor=f"device:{row.id}", subject=row.id, detail={"serial": certificate.serial})
    session.add(used)


def broker_rights(db: Database) -> Iterator[BrokerRight]:
    """Every certificate, read when the first is asked for; devices without one are there by their id.

    Late on purpose: the broker's table is written under a lock, and a list read before the lock was won could undo what another
    process has applied in between.
    """
    with db.read() as session:
        query = select(Device.id, Device.state, Certificate).join(Certificate, col(Certificate.device_id) == col(Device.id), isouter=True)
        found = session.exec(query.order_by(col(Device.id), col(Certificate.issued_at))).all()
    rows = cast("Sequence[tuple[str, str, Certificate | None]]", found)  # of an outer join, which the types do not say
    for ident, state, certificate in rows:
        device = DeviceId(ident)
        if certificate is None:
            if state is DeviceState.ACTIVE:
                yield BrokerRight(device, device, "", _FAR)
            continue
        revoked_at = certificate.revoked_at or (certificate.issued_at if state is not DeviceState.ACTIVE else None)
        yield BrokerRight(device, certificate.broker_user or device, certificate.serial, certificate.expires_at, revoked_at)


def active_devices(rights: Iterable[BrokerRight]) -> list[DeviceId]:
    """The devices with at least one certificate in force, in the order of their ids."""
    return sorted({right.device for right in rights if right.revoked_at is None})


def expiring(session: Session, *, before: datetime, limit: int = 500) -> list[Device]:
    """Active devices whose newest certificate expires before this moment."""
    query = select(Device).where(Device.state == DeviceState.ACTIVE, col(Device.certificate_expires_at) < before)
    return list(session.exec(query.order_by(col(Device.certificate_expires_at)).limit(limit)))


def newest_revocation(db: Database) -> datetime | None:
    """When a certificate was last revoked or retired: when it changes, the broker's table must."""
    with db.read() as session:
        return session.exec(select(func.max(Certificate.revoked_at))).one()


def proof_text(device: str, csr: str) -> bytes:
    """What the old key signs."""
    return PROOF_PREFIX + device.encode("ascii") + b"\0" + csr.encode("ascii")


def _renew(session: Session, row: Device, csr: str, *, authority: Authority, pki: PkiSettings, now: datetime) -> Certificate:
    if row.state is not DeviceState.ACTIVE:
        raise ForbiddenError(f"{row.id} was revoked")
    device = DeviceId(row.id)
    key = authority.key_digest(csr, device=device)
    own = select(Certificate).where(Certificate.device_id == row.id)
    known = session.exec(own.where(Certificate.key_digest == key)).first()
    if known is not None:
        if known.revoked_at is not None or known.expires_at <= now:
            raise ForbiddenError("this key had a certificate before; make a fresh key")
        return known
    recent = select(func.count()).select_from(Certificate).where(Certificate.device_id == row.id, col(Certificate.issued_at) > now - _DAY)
    if session.exec(recent).one() >= pki.max_renewals_per_day:
        raise ThrottledError(f"{row.id} has had {pki.max_renewals_per_day} certificates in 24 hours", retry_after_s=3600.0)
    issued = authority.sign_request(csr, device=device, now=now)
    audit.record(session, "certificate.renewed", actor=f"device:{row.id}", subject=row.id, detail={"serial": issued.serial})
    return add_certificate(session, row, issued, delivered_at=None)


def _is_proof(pem: str, device: str, csr: str, signature: str) -> bool:
    key = x509.load_pem_x509_certificate(pem.encode("ascii")).public_key()
    try:
        raw, text = base64.b64decode(signature, validate=True), proof_text(device, csr)
        if isinstance(key, ec.EllipticCurvePublicKey):
            key.verify(raw, text, ec.ECDSA(hashes.SHA256()))
        elif isinstance(key, rsa.RSAPublicKey):
            key.verify(raw, text, padding.PKCS1v15(), hashes.SHA256())
        else:
            return False
    except (InvalidSignature, binascii.Error, ValueError):
        return False
    return True


def _undelivered() -> SelectOfScalar[Certificate]:
    return select(Certificate).where(
        col(Certificate.delivered_at).is_(None), Certificate.request != "", col(Certificate.revoked_at).is_(None)
    )


def _send(session: Session, device: str, answer: RenewalAnswer) -> None:
    outbox.publish(session, device_topic(DeviceId(device), Channel.CERTIFICATE), encode(answer))
