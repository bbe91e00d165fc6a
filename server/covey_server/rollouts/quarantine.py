"""Give a quarantined digest another chance: an order to one device, signed like every other.

The device lifts the quarantine and carries nothing out for it: what it should run stays what it was, and a deployment that was attempted
is not attempted again. A new rollout is. The entry here is closed by the device's own report, not by the order.
"""

from collections.abc import Collection
from datetime import datetime

import msgspec
from sqlmodel import Session

from covey_contract.codec import decode, decode_order
from covey_contract.messages import Desired, Signed
from covey_server.audit.service import record
from covey_server.devices.service import get_active_device, list_quarantine
from covey_server.errors import ConflictError, InvalidInputError
from covey_server.parts import Director
from covey_server.rollouts.desired import get_desired, send_desired


def release_quarantine(
    session: Session, device_id: str, digests: Collection[str], *, director: Director, actor: str, now: datetime
) -> list[str]:
    """Order a device to release these digests, or all that it has in quarantine if none is named; returns which.

    A digest may be named by its first characters, as the lists show them.
    """
    device = get_active_device(session, device_id)
    present = [entry.digest for entry in list_quarantine(session, device_id)]
    if not present:
        raise ConflictError(f"{device_id} has nothing in quarantine")
    released = sorted({_find(start, present, device_id) for start in digests} or present)
    row = get_desired(session, device_id)
    before = decode_order(decode(row.signed, Signed)) if row else None
    same = before if isinstance(before, Desired) else Desired(device=device.id, generation=1, issued_at=0)
    send_desired(
        session,
        device,
        msgspec.structs.replace(same, released_from_quarantine=released),
        director=director,
        now=now,
        release_id=row.release_id if row else None,
        rollout_id=row.rollout_id if row else None,
    )
    record(session, "quarantine.released", actor=actor, subject=device_id, detail={"digests": released})
    return released


def _find(start: str, present: list[str], device_id: str) -> str:
    found = [digest for digest in present if start and digest.startswith(start)]
    if len(found) != 1:
        raise InvalidInputError(f"expected a digest that {device_id} has in quarantine, or its beginning, got {start!r:.80}")
    return found[0]
