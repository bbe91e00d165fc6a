"""Each device's desired state: a row first, the retained message second.

Generations of one device only rise, also after the database was restored from a backup: the device tells the highest that it
has acted upon. What is retained at the broker can always be made again from the rows, byte for byte.
"""

from datetime import datetime

import msgspec
from sqlmodel import Session, col, select

from covey_contract.codec import decode, encode
from covey_contract.ids import DeviceId
from covey_contract.messages import Desired, ReleaseRef, Signed
from covey_contract.topics import Channel, device_topic
from covey_server import outbox
from covey_server.clock import to_millis
from covey_server.devices.models import Device, DeviceState
from covey_server.parts import Director
from covey_server.rollouts.models import DesiredState

MOST_GENERATION = 2**30  # no fleet comes this far, and PostgreSQL's integers end at 2**31


def order_desired(
    session: Session,
    device: Device,
    *,
    director: Director,
    now: datetime,
    release: ReleaseRef | None,
    release_id: int | None,
    rollout_id: str | None,
    deployment: str,
    probation_s: float,
) -> DesiredState:
    """Give a device a new desired state: the next generation, signed, in its row and on its way."""
    desired = Desired(device=device.id, generation=1, issued_at=0, release=release, deployment=deployment, probation_s=probation_s)
    return send_desired(session, device, desired, director=director, now=now, release_id=release_id, rollout_id=rollout_id)


def send_desired(
    session: Session,
    device: Device,
    desired: Desired,
    *,
    director: Director,
    now: datetime,
    release_id: int | None,
    rollout_id: str | None,
) -> DesiredState:
    """The same for a whole order, whose generation and time are filled in here."""
    row = session.get(DesiredState, device.id)
    generation = max(row.generation if row else 0, _acted_upon(device)) + 1
    desired = msgspec.structs.replace(desired, generation=generation, issued_at=to_millis(now))
    signed = encode(director.sign(encode(desired)))
    if row is None:
        row = DesiredState(device_id=device.id, generation=generation, signed=signed)
    row.generation, row.signed, row.updated_at = generation, signed, now
    row.release_id, row.rollout_id = release_id, rollout_id
    session.add(row)
    _publish(session, row)
    return row


def get_desired(session: Session, device_id: str) -> DesiredState | None:
    """What a device shall run, None if nothing was ever ordered."""
    return session.get(DesiredState, device_id)


def republish_desired(session: Session, director: Director) -> int:
    """Queue every device's desired state again, as the worker does when it starts: a broker may have lost what it retained.

    What another key of the director's had signed is signed anew, byte for byte the same order.
    """
    query = select(DesiredState, Device).join(Device, col(Device.id) == DesiredState.device_id).where(Device.state == DeviceState.ACTIVE)
    count = 0
    for row, device in session.exec(query):
        if row.updated_at >= device.enrolled_at:  # what was ordered for a machine that had this id before is not for this one
            signed = decode(row.signed, Signed)
            if signed.keyid != director.keyid:
                row.signed = encode(director.sign(signed.payload))
                session.add(row)
            _publish(session, row)
            count += 1
    return count


def _publish(session: Session, row: DesiredState) -> None:
    outbox.publish_latest(session, device_topic(DeviceId(row.device_id), Channel.DESIRED), row.signed, retain=True)


def _acted_upon(device: Device) -> int:
    reported = device.reported.get("desired_generation", 0)
    # A device that says more must not stop the rollouts of all others: there may be no number above it.
    return reported if isinstance(reported, int) and reported <= MOST_GENERATION else 0
