"""Time as the server sees it: aware UTC, injected, so that rules and tests hold their own clock."""

from collections.abc import Callable
from datetime import UTC, datetime

Clock = Callable[[], datetime]


def utc_now() -> datetime:
    """The present moment, aware UTC."""
    return datetime.now(UTC)


def to_millis(moment: datetime) -> int:
    """Milliseconds since 1970, as times stand on the wire."""
    return int(moment.timestamp() * 1000)


def from_millis(millis: int) -> datetime:
    """The inverse of `to_millis`."""
    return datetime.fromtimestamp(millis / 1000, UTC)
