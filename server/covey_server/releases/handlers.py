"""The MQTT edge of delivery: a want is only put into the queue, so the router goes on at once."""

from sqlmodel import Session

from covey_contract.ids import DeviceId
from covey_server.mqtt.router import Handler
from covey_server.parts import Parts
from covey_server.releases.delivery import Delivery, Want


def want_handler(delivery: Delivery) -> Handler:
    """The handler for Channel.WANT."""

    def on_want(_parts: Parts, _session: Session, device: DeviceId, want: Want) -> None:
        delivery.accept(device, want)

    return on_want
