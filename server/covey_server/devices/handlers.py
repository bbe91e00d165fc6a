"""The MQTT edge of the devices capability: `status` and `up/reported`."""

from sqlmodel import Session

from covey_contract.ids import DeviceId
from covey_contract.messages import Reported, Status
from covey_contract.topics import Channel
from covey_server.devices import reports
from covey_server.mqtt.router import Router
from covey_server.parts import Parts


def register(router: Router) -> None:
    """Take presence and reported state. Register before others that read the device's row on `up/reported`."""
    router.register(Channel.STATUS, on_status)
    router.register(Channel.REPORTED, on_reported)


def on_status(parts: Parts, session: Session, device: DeviceId, message: Status) -> None:
    """A device, or the broker in its place, tells whether it is connected."""
    reports.note_status(session, device, message, now=parts.clock())


def on_reported(parts: Parts, session: Session, device: DeviceId, message: Reported) -> None:
    """A device tells its full state."""
    reports.note_reported(session, device, message, now=parts.clock())
