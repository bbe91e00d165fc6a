"""Slowing down guesses: too many failures of one key within a window make it wait.

Kept in memory, one per process: it bounds how fast somebody can guess, and a restart only gives a handful of tries back.
The wait is capped, so that nobody can lock another user out for long by guessing on purpose.
"""

from collections import OrderedDict
from datetime import datetime, timedelta
from threading import Lock

from covey_server.errors import ThrottledError


class Throttle:
    """Counts failures by key; after `free` of them each further one doubles the wait, up to `longest`."""

    def __init__(self, *, free: int = 5, first: timedelta = timedelta(seconds=2), longest: timedelta = timedelta(seconds=60)) -> None:
        self._free = free
        self._first = first
        self._longest = longest
        self._lock = Lock()
        self._failures: OrderedDict[str, tuple[int, datetime]] = OrderedDict()  # key -> (how many, when the last was)

    def check(self, key: str, *, now: datetime) -> None:
        """Raise ThrottledError while `key` must wait."""
        with self._lock:
            count, last = self._failures.get(key, (0, now))
        until = last + self._wait(count)
        if now < until:
            wait_s = (until - now).total_seconds()
            raise ThrottledError(f"too many failed tries; wait {wait_s:.0f} seconds", retry_after_s=wait_s)

    def fail(self, key: str, *, now: datetime) -> None:
        """Count one failure."""
        with self._lock:
            count, last = self._failures.pop(key, (0, now))
            if now - last > 10 * self._longest:
                count = 0
            self._failures[key] = (count + 1, now)
            while len(self._failures) > 10_000:  # a flood of different keys must not fill the memory
                self._failures.popitem(last=False)

    def succeed(self, key: str) -> None:
        """Forget the failures of `key`."""
        with self._lock:
            self._failures.pop(key, None)

    def _wait(self, count: int) -> timedelta:
        if count < self._free:
            return timedelta()
        return min(self._first * (1 << min(count - self._free, 16)), self._longest)


class RateLimit:
    """At most `burst` calls at once and `per_second` on average for each key (token bucket)."""

    def __init__(self, *, burst: int, per_second: float) -> None:
        self._burst = burst
        self._per_second = per_second
        self._lock = Lock()
        self._buckets: OrderedDict[str, tuple[float, datetime]] = OrderedDict()

    def take(self, key: str, *, now: datetime) -> None:
        """Count one call. Raises ThrottledError when the key has used up its share."""
        with self._lock:
            left, at = self._buckets.pop(key, (float(self._burst), now))
            left = min(float(self._burst), left + max(0.0, (now - at).total_seconds()) * self._per_second)
            allowed = left >= 1
            self._buckets[key] = (left - 1 if allowed else left, now)
            while len(self._buckets) > 10_000:
                self._buckets.popitem(last=False)
        if not allowed:
            wait_s = (1 - left) / self._per_second
            raise ThrottledError(f"too many requests; wait {wait_s:.0f} seconds", retry_after_s=wait_s)
