"""The MQTT edge of the telemetry capability: `up/readings`."""

from sqlmodel import Session

from covey_contract.ids import DeviceId
from covey_contract.messages import ReadingBatch
from covey_contract.topics import Channel
from covey_server.devices import clones
from covey_server.devices import service as devices
from covey_server.mqtt.router import Router
from covey_server.parts import Parts
from covey_server.telemetry import service
from covey_server.triggers import service as triggers


def register(router: Router) -> None:
    """Take batches of readings."""
    router.register(Channel.READINGS, on_readings)


def on_readings(parts: Parts, session: Session, device: DeviceId, message: ReadingBatch) -> None:
    """Store a batch; what a device raises alarm about becomes an alert."""
    now = parts.clock()
    devices.note_seen(session, device, now=now)
    taken = service.store_readings(session, device, message, now=now)
    if taken.forked:
        clones.note_forked(session, device, taken.forked, epoch=message.epoch, now=now)
    if not taken.stored:
        return
    for reading in message.readings:
        if reading.kind == "alarm":
            what, detail = str(reading.values.get("what", "alarm")), str(reading.values.get("detail", ""))
            triggers.raise_alert(session, what, detail=detail, device=device, now=now)
