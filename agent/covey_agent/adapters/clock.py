"""The machine's clock, with a floor: a device without a battery-backed clock starts in 1970, and must not believe it."""

import time
from datetime import UTC, datetime


class SystemClock:
    """Wall time that never reads earlier than the last time this device is known to have seen."""

    def __init__(self, floor_ms: int = 0) -> None:
        self._floor_ms = floor_ms

    def now_ms(self) -> int:
        """Milliseconds since 1970 UTC."""
        return max(self._floor_ms, time.time_ns() // 1_000_000)

    def now(self) -> datetime:
        """The same as an aware time in the machine's own zone: a policy's hours mean the participant's hours."""
        return datetime.fromtimestamp(self.now_ms() / 1000, UTC).astimezone()

    def monotonic(self) -> float:
        """Seconds that never jump; for deadlines."""
        return time.monotonic()
