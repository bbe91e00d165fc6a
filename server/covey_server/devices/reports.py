"""What devices say of themselves: presence and reported state, written to their rows."""

from collections.abc import Iterable
from datetime import datetime

import msgspec
from sqlmodel import Session, select

from covey_contract.errors import StaleMessageError
from covey_contract.messages import Presence, Quarantined, Reported, Status
from covey_server.clock import from_millis
from covey_server.devices.models import Device, DevicePresence, QuarantineEntry
from covey_server.devices.rules import is_stale, serving_release
from covey_server.devices.service import emit_changed, get_active_device
from covey_server.errors import InvalidInputError

_PRESENCE = {Presence.ONLINE: DevicePresence.ONLINE, Presence.OFFLINE: DevicePresence.OFFLINE}


def note_status(session: Session, device: str, status: Status, *, now: datetime) -> Device:
    """Write a device's presence.

    The last will of an agent process that is gone can arrive after the next one has said hello: "offline" counts only for
    the process that is known to be the present one. Raises StaleMessageError otherwise.
    """
    row = get_active_device(session, device)
    if status.presence is Presence.OFFLINE and row.boot and status.boot != row.boot:
        raise StaleMessageError(f"offline of boot {status.boot}, but {device} has started anew since")
    presence = _PRESENCE[status.presence]
    if presence is DevicePresence.ONLINE:
        row.last_seen_at = now
    has_changed = presence is not row.presence
    if has_changed:
        row.presence, row.presence_at = presence, now
    row.boot = status.boot
    session.add(row)
    if has_changed:
        emit_changed(session, row)
    return row


def note_reported(session: Session, device: str, reported: Reported, *, now: datetime) -> Device:
    """Write a device's full reported state. Raises StaleMessageError for one that is older than the state known."""
    row = get_active_device(session, device)
    known_at = row.reported.get("at", 0)
    # The first report of a new boot counts whatever its number: a restored device must not be unheard until it has counted up again.
    is_new_boot = bool(reported.boot) and reported.boot == row.boot != row.reported.get("boot", "")
    if not is_new_boot and is_stale(
        reported, known_generation=row.reported_generation, known_at=known_at if isinstance(known_at, int) else 0
    ):
        raise StaleMessageError(f"reported generation {reported.generation} of {device}; {row.reported_generation} is known")
    if reported.profile.value != row.profile:
        raise InvalidInputError(f"{device} was enrolled as {row.profile} and reports to be {reported.profile.value}")
    row.reported_generation = reported.generation
    row.reported = msgspec.to_builtins(reported)
    row.last_seen_at = now
    row.agent_version = reported.agent_version[:64]
    row.active_slot = reported.active_slot[:8]
    row.serving_model, row.serving_version, row.serving_variant = serving_release(reported)
    row.deployment_state = reported.deployment.state.value if reported.deployment else "idle"
    row.training = reported.training[:64]
    session.add(row)
    _store_quarantine(session, row.id, reported.quarantine, now=now)
    emit_changed(session, row)
    return row


def _store_quarantine(session: Session, device: str, reported: Iterable[Quarantined], *, now: datetime) -> None:
    known = {entry.digest: entry for entry in session.exec(select(QuarantineEntry).where(QuarantineEntry.device_id == device))}
    present: set[str] = set()
    for item in reported:
        present.add(item.digest)
        entry = known.get(item.digest) or QuarantineEntry(device_id=device, digest=item.digest, at=now)
        entry.reason, entry.at, entry.released_at = item.reason, _past(item.at, now=now), None
        known[item.digest] = entry
        session.add(entry)
    for digest, entry in known.items():
        if digest not in present and entry.released_at is None:
            entry.released_at = now  # the device does not refuse it any more
            session.add(entry)


def _past(millis: int, *, now: datetime) -> datetime:
    """A device's time; now, if its clock says something that cannot be."""
    try:
        return min(from_millis(millis), now)
    except (OverflowError, ValueError, OSError):
        return now
