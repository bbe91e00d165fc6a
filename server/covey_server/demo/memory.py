"""Memory of the whole demo: the sum of PSS over its processes, sampled in the background."""

import contextlib
import os
import threading

import psutil

_EVERY_S = 2.0


class MemoryWatch:
    """Remembers the largest sum seen."""

    def __init__(self) -> None:
        self.peak_bytes = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="memory", daemon=True)
        self._thread.start()

    @property
    def peak_mb(self) -> int:
        """The largest sum seen, in MB."""
        return round(self.peak_bytes / 1e6)

    def close(self) -> None:
        """Stop sampling."""
        self._stop.set()
        self._thread.join(timeout=5)

    def _run(self) -> None:
        me = psutil.Process(os.getpid())
        while not self._stop.wait(_EVERY_S):
            total = 0
            for process in [me, *me.children(recursive=True)]:
                with contextlib.suppress(psutil.Error):  # it has ended meanwhile
                    total += process.memory_full_info().pss
            self.peak_bytes = max(self.peak_bytes, total)
