"""The MQTT edge of the devices capability: `status`, `up/reported`, `up/renew`."""

from sqlmodel import Session

from covey_contract.ids import DeviceId
from covey_contract.messages import Renewal, Reported, Status
from covey_contract.topics import Channel
from covey_server.devices import certificates, reports, service
from covey_server.mqtt.router import Router
from covey_server.parts import Parts


def register(router: Router) -> None:
    """Take presence and reported state. Register before others that read the device's row on `up/reported`."""
    router.register(Channel.STATUS, on_status)
    router.register(Channel.REPORTED, on_reported)
    router.register(Channel.RENEW, on_renewal)


def on_status(parts: Parts, session: Session, device: DeviceId, message: Status) -> None:
    """A device, or the broker in its place, tells whether it is connected."""
    reports.note_status(session, device, message, now=parts.clock())


def on_reported(parts: Parts, session: Session, device: DeviceId, message: Reported) -> None:
    """A device tells its full state."""
    row = reports.note_reported(session, device, message, now=parts.clock())
    certificates.note_used(session, row, message.certificate, now=parts.clock())


def on_renewal(parts: Parts, session: Session, device: DeviceId, message: Renewal) -> None:
    """A device asks for a certificate for a fresh key."""
    row = service.get_active_device(session, device)
    certificates.answer_renewal(session, row, message.csr, authority=parts.authority, pki=parts.settings.pki, now=parts.clock())
