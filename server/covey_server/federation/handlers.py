"""MQTT in: participants' replies to invitations."""

import logging

from sqlmodel import Session

from covey_contract.ids import DeviceId
from covey_contract.messages import Reply
from covey_server.federation import service
from covey_server.parts import Parts

logger = logging.getLogger(__name__)


def on_reply(parts: Parts, session: Session, device: DeviceId, reply: Reply) -> None:
    """Handler for Channel.REPLY. Replies to other commands need no action: reported state says what became of them."""
    if not service.take_reply(session, device, reply, now=parts.clock()):
        logger.debug("device %s: reply %s (%s) answers no invitation", device, reply.id, reply.outcome.value)
