"""The machine's clock, with a floor: a device without a battery-backed clock starts in 1970, and must not believe it."""

import time
from datetime import UTC, datetime

from covey_agent.core.walltime import ClockState, WallTime


class SystemClock:
    """Wall time that never reads earlier than the last time this device is known to have seen, or than this program was made."""

    def __init__(self, floor_ms: int = 0) -> None:
        self._wall = WallTime(floor_ms)

    @property
    def state(self) -> ClockState:
        """Whether the machine's clock is believed."""
        return self._wall.look(_now_ms(), time.monotonic())

    def confirm(self) -> None:
        """A TLS connection came about under the present time."""
        self._wall.confirm(_now_ms(), time.monotonic())

    def now_ms(self) -> int:
        """Milliseconds since 1970 UTC."""
        return max(self._wall.floor_ms, _now_ms())

    def now(self) -> datetime:
        """The same as an aware time in the machine's own zone: a policy's hours mean the participant's hours."""
        return datetime.fromtimestamp(self.now_ms() / 1000, UTC).astimezone()

    def monotonic(self) -> float:
        """Seconds that never jump; for deadlines."""
        return time.monotonic()


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
