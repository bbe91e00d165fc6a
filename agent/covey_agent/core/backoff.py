"""How long to wait before trying again: doubling, bounded, with jitter, so that a fleet does not come back all at once."""

from collections.abc import Callable
from dataclasses import dataclass

Random = Callable[[], float]  # uniform in [0, 1)


@dataclass(frozen=True, slots=True)
class Backoff:
    """Waits of `first_s`, twice as long each time, at most `max_s`; each is drawn from its upper half, at least `first_s`."""

    first_s: float
    max_s: float

    def delay_s(self, failures: int, random: Random) -> float:
        """The wait after `failures` failures in a row (>= 1)."""
        if failures < 1:
            raise ValueError(f"expected at least one failure, got {failures}")
        ceiling = min(self.max_s, self.first_s * 2.0 ** min(failures - 1, 32))
        return max(self.first_s, ceiling * (0.5 + 0.5 * random()))


RECONNECT = Backoff(first_s=1.0, max_s=60.0)
DEPLOY_RETRY = Backoff(first_s=5.0, max_s=300.0)
WORKER_RESTART = Backoff(first_s=0.5, max_s=60.0)
# Flower refuses a node that died uncleanly for about 60 s, so an earlier restart of a trainer only fails.
TRAINER_RESTART = Backoff(first_s=65.0, max_s=600.0)
RESEND = Backoff(first_s=10.0, max_s=120.0)
