"""Which files may be sent to devices, whichever way: artifacts of published releases, and deltas to them."""

from sqlmodel import Session

from covey_server.releases.deltas import delta_length
from covey_server.releases.service import published_length


def sendable_length(session: Session, digest: str) -> int | None:
    """The length of a file that any device may have; None for every other digest."""
    return published_length(session, digest) or delta_length(session, digest)
