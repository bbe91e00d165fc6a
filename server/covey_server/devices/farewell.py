"""Orders to one device about its identity: renew the key now; leave the fleet for good.

Decommissioning: a signed command; the device answers, stops, and wipes what its own policy lets go; with the answer it is revoked. A
device that is away gets the command again whenever it connects, and is revoked at the deadline whether it has answered or not. `now`
revokes without asking: the device then finds itself refused, and serves on by its own policy.
"""

import secrets
from datetime import datetime, timedelta

from sqlmodel import Session, col, select

from covey_contract.codec import encode
from covey_contract.ids import DeviceId
from covey_contract.messages import Decommission, Outcome, Reply, RotateCertificate
from covey_contract.topics import Channel, device_topic
from covey_server import outbox
from covey_server.audit import service as audit
from covey_server.clock import to_millis
from covey_server.devices import certificates, service
from covey_server.devices.models import Device, DeviceState
from covey_server.errors import InvalidInputError
from covey_server.parts import Director
from covey_server.triggers import service as triggers
from covey_server.triggers.models import Severity

_ROTATE_WITHIN = timedelta(days=1)
_MAX_WAIT = timedelta(days=90)
_WIPE = "+wipe"  # what the row remembers of the command besides its id


def rotate_certificate(session: Session, device: str, *, director: Director, actor: str, now: datetime) -> str:
    """Ask a device for a fresh key now; returns the command's id. Its detail shows the new serial when it has connected by it."""
    row = service.get_active_device(session, device)
    command = RotateCertificate(id=f"rot-{secrets.token_hex(8)}", device=row.id, expires_at=to_millis(now + _ROTATE_WITHIN))
    _send(session, row.id, command, director)
    audit.record(session, "certificate.rotation_asked", actor=actor, subject=row.id, detail={"command": command.id})
    return command.id


def decommission_device(
    session: Session, device: str, *, wipe: bool, wait: timedelta, director: Director, actor: str, now: datetime
) -> Device:
    """Ask a device to leave for good. Asking again changes the deadline, and whether it shall wipe."""
    if not timedelta() < wait <= _MAX_WAIT:
        raise InvalidInputError(f"a device may be waited for up to {_MAX_WAIT.days} days, got {wait}")
    row = service.get_active_device(session, device)
    row.decommission = f"bye-{secrets.token_hex(8)}{_WIPE if wipe else ''}"
    row.decommission_by = now + wait
    session.add(row)
    send_decommission(session, row, director=director)
    audit.record(
        session, "device.decommission_asked", actor=actor, subject=row.id, detail={"wipe": wipe, "by": row.decommission_by.isoformat()}
    )
    service.emit_changed(session, row)
    return row


def send_decommission(session: Session, row: Device, *, director: Director) -> None:
    """The command again, if the device is to leave: it may have been away, or its broker may have lost it."""
    if not row.decommission or row.decommission_by is None:
        return
    ident, wipe, _ = row.decommission.partition(_WIPE)
    _send(session, row.id, Decommission(id=ident, device=row.id, expires_at=to_millis(row.decommission_by), wipe=bool(wipe)), director)


def take_reply(session: Session, device: str, reply: Reply, *, now: datetime) -> bool:
    """A device's answer; whether it was one to a Decommission. With "done" the device is revoked."""
    row = service.get_active_device(session, device)
    if not row.decommission or reply.id != row.decommission.partition(_WIPE)[0]:
        return False
    if reply.outcome is not Outcome.DONE:
        triggers.raise_alert(session, "decommission_refused", detail=reply.reason, device=row.id, now=now)
        return True
    detail = {"wiped": str(reply.values.get("wiped", "")), "kept": str(reply.values.get("kept", "")), "reason": reply.reason}
    audit.record(session, "device.decommissioned", actor=f"device:{row.id}", subject=row.id, detail=detail)
    _end(session, row, now=now)
    return True


def end_unanswered(session: Session, *, now: datetime) -> None:
    """Revoke devices that were to leave and have not answered in time."""
    late = select(Device).where(Device.state == DeviceState.ACTIVE, col(Device.decommission_by) <= now)
    for row in list(session.exec(late)):
        triggers.raise_alert(
            session, "decommission_unanswered", detail="revoked; nothing is known of what was wiped", device=row.id, now=now
        )
        _end(session, row, now=now)


def alert_expiring(session: Session, *, alarm: timedelta, now: datetime) -> None:
    """Alert about certificates that run out unrenewed."""
    for row in certificates.expiring(session, before=now + alarm):
        assert row.certificate_expires_at is not None  # noqa: S101 - that is what was asked for
        has_expired = row.certificate_expires_at <= now
        detail = (
            f"its certificate {'has expired' if has_expired else 'expires'} at {row.certificate_expires_at:%Y-%m-%d} and was not renewed"
        )
        severity = Severity.CRITICAL if has_expired else Severity.WARNING
        triggers.raise_alert(session, "certificate_expires", detail=detail, severity=severity, device=row.id, now=now)


def _end(session: Session, row: Device, *, now: datetime) -> None:
    service.revoke_device(session, row.id, actor="system:decommission", now=now)
    row.decommission_by = None
    session.add(row)


def _send(session: Session, device: str, command: RotateCertificate | Decommission, director: Director) -> None:
    outbox.publish(session, device_topic(DeviceId(device), Channel.COMMAND), encode(director.sign(encode(command))))
