"""Whether the machine's clock can be believed. Pure: fed with what the wall clock and the monotonic clock say.

| the wall clock says | state |
|---|---|
| a time before one that is known to have been | BEHIND: not set yet, as on a machine without a battery that starts in 1970 |
| much later than it can be by what was seen last | AHEAD: until a connection under it shows that the broker's certificate is valid then |
| anything else | SET |

In doubt, nothing is dropped for its age, the floor is not raised, and readings are marked. Deadlines never depend on it.
"""

from enum import Enum

BUILD_MS = 1_793_491_200_000  # 2026-11-01 UTC: no clock that is set shows an earlier time than this program was made
DAY_MS = 86_400_000
MAX_JUMP_MS = DAY_MS  # more than this ahead of the monotonic clock is not believed at once,
MAX_AWAY_MS = 400 * DAY_MS  # nor that a device was switched off for longer than this


class ClockState(Enum):
    """Whether the wall clock is believed; the value marks readings."""

    SET = "set"
    BEHIND = "behind"
    AHEAD = "ahead"


class WallTime:
    """Remembers the last time that was believed. Times are milliseconds, monotonic ones seconds."""

    def __init__(self, floor_ms: int) -> None:
        self.floor_ms = max(floor_ms, BUILD_MS)
        self._has_history = floor_ms > BUILD_MS
        self._believed: tuple[int, float] | None = None  # wall, monotonic

    def look(self, wall_ms: int, monotonic: float) -> ClockState:
        """What to think of the clock now."""
        if wall_ms < self.floor_ms:
            return ClockState.BEHIND
        if self._believed is not None:
            before, then = self._believed
            is_ahead = wall_ms > before + int((monotonic - then) * 1000) + MAX_JUMP_MS
        else:
            is_ahead = self._has_history and wall_ms > self.floor_ms + MAX_AWAY_MS
        if is_ahead:
            return ClockState.AHEAD
        self._believed = (wall_ms, monotonic)
        return ClockState.SET

    def confirm(self, wall_ms: int, monotonic: float) -> None:
        """A TLS connection came about under this time."""
        if wall_ms >= self.floor_ms:
            self._believed = (wall_ms, monotonic)
