"""The MQTT edge of rollouts: a device's reported state moves its part and may move the rollout, in one transaction."""

from sqlmodel import Session

from covey_contract.ids import DeviceId
from covey_contract.messages import Reported
from covey_contract.topics import Channel
from covey_server.mqtt.router import Router
from covey_server.parts import Parts
from covey_server.rollouts.progress import advance_rollout, note_report
from covey_server.rollouts.restored import note_ahead


def register(router: Router) -> None:
    """Take reported states; register after the devices capability, which refuses stale ones."""
    router.register(Channel.REPORTED, on_reported)


def on_reported(parts: Parts, session: Session, device: DeviceId, message: Reported) -> None:
    """A device tells its full state."""
    now = parts.clock()
    note_ahead(session, device, message, now=now)
    rollout_id = note_report(session, device, message, now=now)
    if rollout_id is not None:
        advance_rollout(session, rollout_id, director=parts.director, now=now)
