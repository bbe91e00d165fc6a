"""How long to wait before trying again: doubling, bounded, with jitter, so that a fleet does not come back all at once."""

from collections.abc import Callable
from dataclasses import dataclass

Random = Callable[[], float]  # uniform in [0, 1)


@dataclass(frozen=True, slots=True)
class Backoff:
    """Waits of `first_s`, twice as long each time, at most `max_s`; each is drawn from its upper part.

    `spread` is that part's share, 0..1. Whoever fails alone is served by a half; where thousands fail at the same moment, such as
    when a broker restarts, nearly the whole wait must be drawn, the first one above all.
    """

    first_s: float
    max_s: float
    spread: float = 0.5
    least_s: float | None = None  # no wait is shorter; None: `first_s`

    def delay_s(self, failures: int, random: Random) -> float:
        """The wait after `failures` failures in a row (>= 1)."""
        if failures < 1:
            raise ValueError(f"expected at least one failure, got {failures}")
        ceiling = min(self.max_s, self.first_s * 2.0 ** min(failures - 1, 32))
        least = self.first_s if self.least_s is None else self.least_s
        return max(least, ceiling * (1.0 - self.spread + self.spread * random()))


def reconnect_backoff(spread_s: float) -> Backoff:
    """How the connection to the broker is tried again: the first time anywhere within `spread_s`, then ever more seldom."""
    return Backoff(first_s=spread_s, max_s=max(60.0, spread_s), spread=0.95, least_s=0.1)


DEPLOY_RETRY = Backoff(first_s=5.0, max_s=300.0)
ACTION_RETRY = Backoff(first_s=1.0, max_s=60.0)
WORKER_RESTART = Backoff(first_s=0.5, max_s=60.0)
# Flower refuses a node that died uncleanly for about 60 s, so an earlier restart of a trainer only fails.
TRAINER_RESTART = Backoff(first_s=65.0, max_s=600.0)
RESEND = Backoff(first_s=10.0, max_s=120.0)
