"""Timers of the event loop, by key: setting one again replaces it."""

import heapq
from collections.abc import Callable

Action = Callable[[], None]


class Timers:
    """Actions with a due time on the monotonic clock, run by the event loop."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._due: dict[str, tuple[float, Action]] = {}
        self._heap: list[tuple[float, str]] = []

    def set(self, key: str, delay_s: float, action: Action) -> None:
        """Run `action` after `delay_s`, instead of whatever was set under this key."""
        due = self._monotonic() + delay_s
        self._due[key] = (due, action)
        heapq.heappush(self._heap, (due, key))

    def set_once(self, key: str, delay_s: float, action: Action) -> None:
        """Like `set`, unless the key is set already."""
        if key not in self._due:
            self.set(key, delay_s, action)

    def cancel(self, key: str) -> None:
        """Forget `key`; an unknown one is no error."""
        self._due.pop(key, None)

    def is_set(self, key: str) -> bool:
        """Whether `key` will run."""
        return key in self._due

    def wait_s(self) -> float | None:
        """How long until the next timer; None: none is set."""
        self._discard_replaced()
        return max(0.0, self._heap[0][0] - self._monotonic()) if self._heap else None

    def pop_due(self) -> Action | None:
        """The next action that is due, which is then no longer set."""
        self._discard_replaced()
        if not self._heap or self._heap[0][0] > self._monotonic():
            return None
        _, key = heapq.heappop(self._heap)
        return self._due.pop(key)[1]

    def _discard_replaced(self) -> None:
        while self._heap and self._due.get(self._heap[0][1], (None,))[0] != self._heap[0][0]:
            heapq.heappop(self._heap)
