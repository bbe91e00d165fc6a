"""The MQTT edge of delivery: a want is only put into the queue, so the router goes on at once."""

from sqlmodel import Session

from covey_contract.ids import DeviceId
from covey_contract.topics import Channel
from covey_server.mqtt.router import Router
from covey_server.parts import Parts
from covey_server.releases.delivery import Delivery, Want


def register(router: Router, delivery: Delivery) -> None:
    """Let `delivery` answer what devices want."""

    def on_want(_parts: Parts, _session: Session, device: DeviceId, want: Want) -> None:
        delivery.accept(device, want)

    router.register(Channel.WANT, on_want)
