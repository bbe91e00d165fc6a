"""How long to wait for an answer before asking again, and when to stop asking. Pure: fed with a clock and a random source.

A fixed timer made fifty devices ask for everything twice and a server collapse under its own answers (measured). So:
- the wait follows the measured round trip (Jacobson's and Karels's estimate, RFC 6298), never below a floor;
- an answer to a question that was asked twice is not measured (Karn's rule: nobody knows which asking it answers);
- one question may have many answers (the chunks of a group): the gaps between them are measured too, because on a slow link it
  is the bytes that take the time, not the distance;
- each asking in vain doubles the wait up to a cap, with jitter, so that a fleet that lost its server together does not come back
  together;
- without any progress for `patience_s`, it is over.
"""

import random
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PatienceSettings:
    """All in seconds."""

    first_wait_s: float = 2.0
    least_wait_s: float = 0.5
    most_wait_s: float = 30.0
    patience_s: float = 180.0  # without progress
    jitter: float = 0.25  # a wait is stretched by up to this share


class Patience:
    """The state of one series of questions to one server."""

    def __init__(self, settings: PatienceSettings, *, now: float, chance: random.Random) -> None:
        self._settings = settings
        self._chance = chance
        self._smoothed: float | None = None
        self._deviation = 0.0
        self._vain = 0  # askings without an answer, in a row
        self._heard_at = now  # the last asking or answer
        self.progress_at = now

    def begin(self, *, now: float) -> None:
        """A new series of questions; what was learned about the link stays."""
        self._vain = 0
        self.progress_at = now

    def asked(self, *, now: float) -> float:
        """A question goes out; return how long to wait for its answer."""
        self._heard_at = now
        wait = min(self._timeout() * (1 << min(self._vain, 16)), self._settings.most_wait_s)
        self._vain += 1
        return wait * (1 + self._chance.random() * self._settings.jitter)

    def answered(self, *, now: float) -> float:
        """Something new came; return how long to wait for more of it."""
        if self._vain <= 1:
            self._measure(now - self._heard_at)
        self._vain = 0
        self._heard_at = self.progress_at = now
        return min(self._timeout(), self._settings.most_wait_s)

    @property
    def round_trip_s(self) -> float | None:
        """The smoothed time from a question to its answer; None before the first one."""
        return self._smoothed

    def is_over(self, *, now: float) -> bool:
        """Whether it is time to give up."""
        return now - self.progress_at > self._settings.patience_s

    def _timeout(self) -> float:
        if self._smoothed is None:
            return self._settings.first_wait_s
        return max(self._smoothed + 4 * self._deviation, self._settings.least_wait_s)

    def _measure(self, elapsed: float) -> None:
        if self._smoothed is None:
            self._smoothed, self._deviation = elapsed, elapsed / 2
        else:
            self._deviation += (abs(self._smoothed - elapsed) - self._deviation) / 4
            self._smoothed += (elapsed - self._smoothed) / 8
