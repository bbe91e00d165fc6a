"""Timers of the event loop, by key: setting one again replaces it."""

import heapq


class Timers:
    """Keys with a due time on the monotonic clock."""

    def __init__(self) -> None:
        self._due: dict[str, float] = {}
        self._heap: list[tuple[float, str]] = []

    def set(self, key: str, due: float) -> None:
        """Fire `key` at `due`."""
        self._due[key] = due
        heapq.heappush(self._heap, (due, key))

    def cancel(self, key: str) -> None:
        """Forget `key`; an unknown one is no error."""
        self._due.pop(key, None)

    def is_set(self, key: str) -> bool:
        """Whether `key` will fire."""
        return key in self._due

    def next_due(self) -> float | None:
        """When the next timer fires."""
        self._discard_replaced()
        return self._heap[0][0] if self._heap else None

    def pop_due(self, now: float) -> list[str]:
        """The keys that are due, which are then no longer set."""
        keys: list[str] = []
        while True:
            self._discard_replaced()
            if not self._heap or self._heap[0][0] > now:
                return keys
            _, key = heapq.heappop(self._heap)
            del self._due[key]
            keys.append(key)

    def _discard_replaced(self) -> None:
        while self._heap and self._due.get(self._heap[0][1]) != self._heap[0][0]:
            heapq.heappop(self._heap)
