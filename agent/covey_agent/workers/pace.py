"""How much to ask for at once, and how fast to take it. Pure: fed with a clock.

`ChunkWindow`: a slow link is a queue in which commands wait behind chunks, also on another connection. So no more is asked for than the
link brought within about half a second, measured on what came before; on a fast link that is a whole group.
`Pace`: a token bucket for the owner's cap. The broker sends what was asked for at the link's speed; asking seldom is what slows it down.
"""

from collections.abc import Callable
from dataclasses import dataclass

from covey_contract.limits import CHUNK_BYTES, GROUP_CHUNKS

QUEUE_S = 0.5  # how long a command may wait behind what was asked for
SLOW_START = 2  # chunks, before anything is known of the link
FAST_S = 0.05  # a round trip within a house


@dataclass
class ChunkWindow:
    """How many chunks to ask for at once, 1 to GROUP_CHUNKS."""

    size: int = SLOW_START
    _rate: float = 0.0  # bytes a second, smoothed

    @classmethod
    def after(cls, round_trip_s: float | None) -> "ChunkWindow":
        """A link whose first answers came quickly is taken for a fast one until it shows otherwise."""
        return cls(GROUP_CHUNKS if round_trip_s is not None and round_trip_s < FAST_S else SLOW_START)

    def arrived(self, size: int, elapsed_s: float) -> None:
        """`size` bytes came within `elapsed_s` of being asked for."""
        if size < CHUNK_BYTES:
            return  # a round trip, not a rate
        rate = size / max(elapsed_s, 1e-4)
        self._rate = rate if not self._rate else 0.5 * self._rate + 0.5 * rate
        fits = int(self._rate * QUEUE_S / CHUNK_BYTES)
        self.size = max(1, min(fits, 2 * self.size, GROUP_CHUNKS))

    def cut(self, missing: int) -> int:
        """The first `size` bits of a group's missing chunks."""
        mask = 0
        for _ in range(self.size):
            lowest = missing & -missing
            mask |= lowest
            missing ^= lowest
        return mask


class Pace:
    """At most `bytes_per_s` on average; 0: no cap."""

    def __init__(self, bytes_per_s: float, *, clock: Callable[[], float], pause: Callable[[float], None]) -> None:
        self._rate = bytes_per_s
        self._clock = clock
        self._pause = pause
        self._owed = 0.0  # bytes that were taken before their time
        self._at = clock()

    def take(self, size: int) -> None:
        """`size` bytes came: wait until the next may be asked for."""
        if self._rate <= 0:
            return
        now = self._clock()
        self._owed = max(0.0, self._owed - (now - self._at) * self._rate) + size
        self._at = now
        if self._owed > CHUNK_BYTES / 4:
            self._pause(self._owed / self._rate)
