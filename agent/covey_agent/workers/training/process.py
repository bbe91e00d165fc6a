"""What a training process sets before it imports flwr and torch."""

import ctypes
import os
import sys
from collections.abc import Mapping

# Flower reads these when it is imported. Nothing of a participant goes anywhere but to its own fleet.
FLOWER_ENVIRONMENT: Mapping[str, str] = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "OMP_NUM_THREADS": "1",
}
_M_MMAP_THRESHOLD = -3  # of mallopt(3)
_MMAP_FROM_BYTES = 1024 * 1024


def prepare() -> None:
    """Keep Flower silent, use one thread, and have freed arrays go back to the system at once.

    Without the last, samples of different sizes make the heap grow from round to round: 880 instead of 400 MB after eight.
    """
    os.environ.update(FLOWER_ENVIRONMENT)
    if sys.platform == "linux":
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _MMAP_FROM_BYTES)
