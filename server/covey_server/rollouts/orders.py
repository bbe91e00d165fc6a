"""What a rollout tells devices: the release when their turn has come, and the way back when it is taken back."""

import secrets
from datetime import datetime

from sqlmodel import Session, col, select

from covey_contract.messages import ReleaseRef
from covey_server.devices.models import Device, DeviceState
from covey_server.parts import Director
from covey_server.releases.models import ReleaseState
from covey_server.releases.service import find_release, get_release, id_of, shippable_ref
from covey_server.rollouts.desired import get_desired, order_desired
from covey_server.rollouts.models import Rollout, RolloutDevice, RolloutDeviceState

# One transaction must not sign for a whole fleet: others wait for the database meanwhile.
BATCH = 500
_REACHED = (RolloutDeviceState.SENT, RolloutDeviceState.ACTIVE, RolloutDeviceState.UNRESPONSIVE)
_TAKEN_BACK_AT_HALT = (*_REACHED, RolloutDeviceState.SUCCEEDED, RolloutDeviceState.FAILED)


def new_deployment_id() -> str:
    """An id that no deployment had before."""
    return f"dp-{secrets.token_hex(8)}"


def send_phase(session: Session, rollout: Rollout, *, director: Director, now: datetime) -> int:
    """Order the release on devices of the present phase that were not told yet; returns how many were handled."""
    release = get_release(session, rollout.release_id)
    ref = shippable_ref(release)
    query = (
        select(RolloutDevice, Device)
        .join(Device, col(Device.id) == RolloutDevice.device_id)
        .where(
            RolloutDevice.rollout_id == rollout.id,
            RolloutDevice.phase == rollout.current_phase,
            RolloutDevice.state == RolloutDeviceState.PENDING,
        )
        .order_by(col(RolloutDevice.id))
        .limit(BATCH)
    )
    found = list(session.exec(query))
    for part, device in found:
        if device.state is not DeviceState.ACTIVE:
            part.state, part.reason, part.finished_at = RolloutDeviceState.SKIPPED, "the device was revoked", now
            continue
        part.previous_release_id = _served_release(session, device)
        part.state, part.sent_at, part.progressed_at = RolloutDeviceState.SENT, now, now
        order_desired(
            session,
            device,
            director=director,
            now=now,
            release=ref,
            release_id=release.id,
            rollout_id=rollout.id,
            deployment=part.deployment_id,
            probation_s=rollout.probation_s,
        )
    return len(found)


def take_back(session: Session, rollout: Rollout, *, director: Director, now: datetime, succeeded_too: bool) -> int:
    """Order devices that were reached back to what they served before; returns how many.

    Args:
        succeeded_too: also devices that are done with it, as when a rule has halted the rollout.
    """
    states = _TAKEN_BACK_AT_HALT if succeeded_too else _REACHED
    query = (
        select(RolloutDevice, Device)
        .join(Device, col(Device.id) == RolloutDevice.device_id)
        .where(
            RolloutDevice.rollout_id == rollout.id,
            col(RolloutDevice.state).in_(states),
            RolloutDevice.revert_deployment_id == "",
            Device.state == DeviceState.ACTIVE,
        )
        .order_by(col(RolloutDevice.id))
        .limit(BATCH)
    )
    found = list(session.exec(query))
    for part, device in found:
        _take_back_one(session, rollout, part, device, director=director, now=now)
    return len(found)


def _take_back_one(session: Session, rollout: Rollout, part: RolloutDevice, device: Device, *, director: Director, now: datetime) -> None:
    part.revert_deployment_id = new_deployment_id()
    desired = get_desired(session, device.id)
    if desired is None or desired.rollout_id != rollout.id:
        return  # another rollout has given it something newer
    release_id, ref = _way_back(session, part)
    order_desired(
        session,
        device,
        director=director,
        now=now,
        release=ref,
        release_id=release_id,
        rollout_id=rollout.id,
        deployment=part.revert_deployment_id if ref else "",
        probation_s=rollout.probation_s,
    )


def _way_back(session: Session, part: RolloutDevice) -> tuple[int | None, ReleaseRef | None]:
    """What the device is to go back to; nothing ("keep what runs") if it is there already or there is nothing that may be shipped.

    A device that rolled back by itself serves its old release. Telling it so would only replace its report of the rollback.
    """
    if part.state is RolloutDeviceState.FAILED or part.previous_release_id is None:
        return None, None
    previous = get_release(session, part.previous_release_id)
    if previous.state is not ReleaseState.PUBLISHED:
        return None, None
    return previous.id, shippable_ref(previous)


def _served_release(session: Session, device: Device) -> int | None:
    if not device.serving_model:
        return None
    release = find_release(session, device.serving_model, device.serving_version)
    return id_of(release) if release else None
