"""The MQTT edge of the devices capability: `status`, `up/reported`, `up/renew`, `up/reply`."""

from sqlmodel import Session

from covey_contract.ids import DeviceId
from covey_contract.messages import Presence, Renewal, Reply, Reported, Status
from covey_contract.topics import Channel
from covey_server.devices import certificates, clones, farewell, reports, service, upgrades
from covey_server.devices.models import DeviceState
from covey_server.mqtt.router import Router
from covey_server.parts import Parts


def register(router: Router) -> None:
    """Take presence and reported state. Register before others that read the device's row on `up/reported`."""
    router.register(Channel.STATUS, on_status)
    router.register(Channel.REPORTED, on_reported)
    router.register(Channel.RENEW, on_renewal)
    router.register(Channel.REPLY, on_reply)


def on_status(parts: Parts, session: Session, device: DeviceId, message: Status) -> None:
    """A device, or the broker in its place, tells whether it is connected."""
    if message.presence is Presence.ONLINE:
        row = service.get_active_device(session, device)
        said = clones.Said(message.boot, message.at)
        clones.note_said(session, row, said, now=parts.clock(), on_clone=parts.settings.pki.on_clone)
        if row.state is not DeviceState.ACTIVE:
            return  # revoked just now, as a clone
        farewell.send_decommission(session, row, director=parts.director)
    reports.note_status(session, device, message, now=parts.clock())


def on_reported(parts: Parts, session: Session, device: DeviceId, message: Reported) -> None:
    """A device tells its full state."""
    now = parts.clock()
    known = service.get_active_device(session, device)
    said = clones.Said(message.boot, message.at, message.generation)
    clones.note_said(session, known, said, now=now, on_clone=parts.settings.pki.on_clone)
    if known.state is not DeviceState.ACTIVE:
        return  # revoked just now, as a clone
    row = reports.note_reported(session, device, message, now=now)
    certificates.note_used(session, row, message.certificate, now=parts.clock())


def on_reply(parts: Parts, session: Session, device: DeviceId, message: Reply) -> None:
    """A device answers a command; only a farewell and an upgrade of the agent are of interest here."""
    farewell.take_reply(session, device, message, now=parts.clock())
    upgrades.take_reply(session, device, message, now=parts.clock())


def on_renewal(parts: Parts, session: Session, device: DeviceId, message: Renewal) -> None:
    """A device asks for a certificate for a fresh key."""
    row = service.get_active_device(session, device)
    certificates.answer_renewal(session, row, message.csr, authority=parts.authority, pki=parts.settings.pki, now=parts.clock())
