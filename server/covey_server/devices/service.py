"""Who belongs to the fleet: invitations, enrolment, revocation, labels, lists.

Enrolment is the only way in, and an invitation the only way to it: one device id, one use, a short life. What changes the
broker's table (enrolment, revocation) is committed first; the edge that called then applies `broker_rights` to the broker.
"""

import hmac
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import func, update
from sqlmodel import Session, col, or_, select

from covey_contract.ids import DeviceId, parse_device_id
from covey_contract.messages import Profile
from covey_contract.topics import Channel, device_topic
from covey_server import outbox
from covey_server.access.tokens import hash_secret, new_secret
from covey_server.audit import service as audit
from covey_server.devices.certificates import add_certificate
from covey_server.devices.invitation_token import make_token
from covey_server.devices.models import Certificate, Device, DevicePresence, DeviceState, Invitation, QuarantineEntry
from covey_server.devices.rules import check_labels, parse_new_device_id, parse_profile
from covey_server.devices.supernode_keys import check_supernode_key
from covey_server.errors import ConflictError, ForbiddenError, InvalidInputError, NotFoundError, UnauthenticatedError
from covey_server.parts import Authority

_MAX_INVITATION = timedelta(days=30)
_SEEN_EVERY = timedelta(seconds=5)
_DEVICES = Device.metadata.tables["devices"]


@dataclass(frozen=True, slots=True)
class Enrolled:
    """A device that has just joined, and its certificate (PEM)."""

    device: Device
    certificate: str


def invite_device(
    session: Session,
    device: str,
    *,
    profile: Profile | str,
    labels: Mapping[str, str],
    ttl: timedelta,
    actor: str,
    now: datetime,
    edge_url: str,
    fingerprint: str,
) -> tuple[Invitation, str]:
    """Invite one device; returns the invitation and the token's text, which is shown this once. Older invitations for it end."""
    device_id = parse_new_device_id(device)
    kind = profile if isinstance(profile, Profile) else parse_profile(profile)
    if not timedelta() < ttl <= _MAX_INVITATION:
        raise InvalidInputError(f"an invitation lasts up to {_MAX_INVITATION.days} days, got {ttl}")
    known = session.get(Device, device_id)
    if known is not None and known.state is DeviceState.ACTIVE:
        raise ConflictError(f"{device_id} is enrolled already; revoke it before you invite it anew")
    _withdraw_open(session, device_id, now=now)
    secret = new_secret()
    invitation = Invitation(
        id=secrets.token_hex(8),
        device_id=device_id,
        profile=kind.value,
        labels=check_labels(labels),
        secret_hash=hash_secret(secret),
        created_by=actor,
        created_at=now,
        expires_at=now + ttl,
    )
    session.add(invitation)
    audit.record(session, "device.invited", actor=actor, subject=device_id, detail={"invitation": invitation.id, "profile": kind.value})
    return invitation, make_token(device_id, url=edge_url, fingerprint=fingerprint, secret=secret)


def withdraw_invitation(session: Session, invitation_id: str, *, actor: str, now: datetime) -> Invitation:
    """End an invitation that was not used; again is no error."""
    invitation = session.get(Invitation, invitation_id)
    if invitation is None:
        raise NotFoundError("invitation", invitation_id)
    if invitation.used_at is not None:
        raise ConflictError(f"the invitation was used; revoke the device {invitation.device_id} instead")
    if invitation.withdrawn_at is None:
        invitation.withdrawn_at = now
        session.add(invitation)
        audit.record(session, "invitation.withdrawn", actor=actor, subject=invitation.device_id, detail={"invitation": invitation.id})
    return invitation


def list_invitations(session: Session, *, after: str = "", limit: int = 50, device: str | None = None) -> Sequence[Invitation]:
    """Invitations by id, used and withdrawn ones included."""
    query = select(Invitation).where(col(Invitation.id) > after)
    if device is not None:
        query = query.where(Invitation.device_id == device)
    return session.exec(query.order_by(col(Invitation.id)).limit(limit)).all()


def enrol_device(
    session: Session,
    *,
    token: str,
    device: str,
    csr: str,
    supernode_public_key: str,
    profile: str,
    agent_version: str,
    authority: Authority,
    now: datetime,
) -> Enrolled:
    """Let an invited device in. `token` is the secret inside the invitation's text.

    The secret is checked before anything else is looked at, so that a stranger cannot make the server do work; a fault in
    what follows leaves the invitation unused.
    """
    invitation = _valid_invitation(session, token, now=now)
    device_id = parse_new_device_id(device)
    if device_id != invitation.device_id:
        raise ForbiddenError(f"the invitation is for another device, not for {device_id}")
    if parse_profile(profile).value != invitation.profile:
        raise InvalidInputError(f"the invitation is for profile {invitation.profile}, the agent says {profile}")
    known = session.get(Device, device_id)
    if known is not None and known.state is DeviceState.ACTIVE:
        raise ConflictError(f"{device_id} is enrolled already")
    key = check_supernode_key(supernode_public_key)
    if key and session.exec(select(Device.id).where(Device.supernode_public_key == key, Device.state == DeviceState.ACTIVE)).first():
        raise ConflictError("the SuperNode key belongs to another device; make a new one")
    issued = authority.sign_request(csr, device=device_id, now=now)
    row = known or Device(id=device_id)
    _start_afresh(row, invitation, now=now)
    row.supernode_public_key, row.agent_version = key, agent_version[:64]
    invitation.used_at = now
    session.add_all([row, invitation])
    session.flush()  # the device's row must stand before its certificate refers to it
    add_certificate(session, row, issued, delivered_at=now)
    audit.record(session, "device.enrolled", actor=f"device:{device_id}", subject=device_id, detail={"serial": issued.serial})
    emit_changed(session, row)
    return Enrolled(row, issued.pem)


def revoke_device(session: Session, device: str, *, actor: str, now: datetime) -> Device:
    """Take a device out of the fleet; again is no error. The caller applies the broker's permissions after the commit."""
    row = get_device(session, device)
    if row.state is DeviceState.REVOKED:
        return row
    row.state, row.presence, row.presence_at = DeviceState.REVOKED, DevicePresence.OFFLINE, now
    session.add(row)
    for certificate in session.exec(select(Certificate).where(Certificate.device_id == row.id, col(Certificate.revoked_at).is_(None))):
        certificate.revoked_at = now
        session.add(certificate)
    _withdraw_open(session, row.id, now=now)
    # An empty retained message deletes the one that the broker keeps: a machine that takes this id later must not find it.
    outbox.publish_latest(session, device_topic(DeviceId(row.id), Channel.DESIRED), b"", retain=True)
    audit.record(session, "device.revoked", actor=actor, subject=row.id, detail={"serial": row.certificate_serial})
    emit_changed(session, row)
    return row


def get_device(session: Session, device: str) -> Device:
    """One device. Raises InvalidIdError or NotFoundError."""
    row = session.get(Device, parse_device_id(device))
    if row is None:
        raise NotFoundError("device", device)
    return row


def get_active_device(session: Session, device: str) -> Device:
    """A device that belongs to the fleet now. Raises NotFoundError or ForbiddenError."""
    row = get_device(session, device)
    if row.state is not DeviceState.ACTIVE:
        raise ForbiddenError(f"{device} was revoked")
    return row


def note_seen(session: Session, device: str, *, now: datetime) -> None:
    """A device that belongs to the fleet has spoken. Raises NotFoundError or ForbiddenError for any other.

    Reads and writes only what it needs: every batch of readings comes by here, and a device's row is large.
    """
    found = session.exec(select(Device.state, Device.last_seen_at).where(Device.id == device)).first()
    if found is None:
        raise NotFoundError("device", device)
    state, last_seen_at = found
    if state is not DeviceState.ACTIVE:
        raise ForbiddenError(f"{device} was revoked")
    if last_seen_at is None or now - last_seen_at >= _SEEN_EVERY:
        session.connection().execute(update(_DEVICES).where(_DEVICES.c.id == device), {"last_seen_at": now})


def list_devices(
    session: Session,
    *,
    after: str = "",
    limit: int = 50,
    labels: Mapping[str, str] | None = None,
    presence: DevicePresence | None = None,
    state: DeviceState | None = None,
    profile: Profile | None = None,
    text: str = "",
) -> Sequence[Device]:
    """Devices by id that match every filter given; `text` is looked for in the id and the model that is served."""
    query = select(Device).where(col(Device.id) > after)
    for key, value in (labels or {}).items():
        query = query.where(col(Device.labels)[key].as_string() == value)
    for column, wanted in ((Device.presence, presence), (Device.state, state), (Device.profile, profile.value if profile else None)):
        if wanted is not None:
            query = query.where(column == wanted)
    if text:
        query = query.where(or_(col(Device.id).contains(text, autoescape=True), col(Device.serving_model).contains(text, autoescape=True)))
    return session.exec(query.order_by(col(Device.id)).limit(limit)).all()


def count_devices(session: Session) -> dict[DevicePresence, int]:
    """How many active devices there are, by presence."""
    query = select(Device.presence, func.count()).where(Device.state == DeviceState.ACTIVE).group_by(col(Device.presence))
    found = dict(session.exec(query).all())
    return {presence: found.get(presence, 0) for presence in DevicePresence}


def set_labels(session: Session, device: str, changes: Mapping[str, str | None], *, actor: str) -> Device:
    """Change some labels; None removes one."""
    row = get_active_device(session, device)
    merged = {**row.labels, **changes}
    labels = check_labels({key: value for key, value in merged.items() if value is not None})
    if labels != row.labels:
        row.labels = labels
        session.add(row)
        audit.record(session, "device.labelled", actor=actor, subject=row.id, detail={"labels": labels})
        emit_changed(session, row)
    return row


def list_quarantine(session: Session, device: str) -> Sequence[QuarantineEntry]:
    """The digests that a device refuses now."""
    query = select(QuarantineEntry).where(QuarantineEntry.device_id == device, col(QuarantineEntry.released_at).is_(None))
    return session.exec(query.order_by(col(QuarantineEntry.at))).all()


def emit_changed(session: Session, device: Device) -> None:
    """Tell the consoles that this device looks different now."""
    outbox.emit(
        session,
        "device.changed",
        {
            "device": device.id,
            "state": device.state.value,
            "presence": device.presence.value,
            "serving_model": device.serving_model,
            "serving_version": device.serving_version,
            "deployment_state": device.deployment_state,
        },
    )


def _valid_invitation(session: Session, secret: str, *, now: datetime) -> Invitation:
    presented = hash_secret(secret)
    invitation = session.exec(select(Invitation).where(Invitation.secret_hash == presented)).first()
    if invitation is None or not hmac.compare_digest(invitation.secret_hash, presented):
        raise UnauthenticatedError("the invitation token is not known here")
    if invitation.used_at is not None:
        raise ConflictError("the invitation was used already; ask for a new one")
    if invitation.withdrawn_at is not None:
        raise ForbiddenError("the invitation was withdrawn; ask for a new one")
    if invitation.expires_at <= now:
        raise ForbiddenError(f"the invitation expired at {invitation.expires_at.isoformat()}; ask for a new one")
    return invitation


def _withdraw_open(session: Session, device: str, *, now: datetime) -> None:
    query = select(Invitation).where(
        Invitation.device_id == device, col(Invitation.used_at).is_(None), col(Invitation.withdrawn_at).is_(None)
    )
    for invitation in session.exec(query):
        invitation.withdrawn_at = now
        session.add(invitation)


def _start_afresh(row: Device, invitation: Invitation, *, now: datetime) -> None:
    """What a machine that had this id before has reported says nothing about the one that joins now."""
    row.profile, row.labels, row.state, row.enrolled_at = invitation.profile, dict(invitation.labels), DeviceState.ACTIVE, now
    row.presence, row.presence_at, row.last_seen_at, row.boot = DevicePresence.NEVER, None, None, ""
    row.reported_generation, row.reported, row.supernode_id = -1, {}, ""
    row.serving_model, row.serving_version, row.serving_variant = "", 0, ""
    row.clone_suspected_at, row.decommission, row.decommission_by = None, "", None
    row.active_slot, row.deployment_state, row.training = "", "idle", ""
