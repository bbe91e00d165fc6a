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


def prepare() -> None:
    """Keep Flower silent and use one thread: a trainer shares its machine with what it was bought for."""
    os.environ.update(FLOWER_ENVIRONMENT)


def return_memory() -> None:
    """Give freed memory back to the system.

    Samples differ in size, so without this the heap grows from round to round: 1100 instead of 400 MB after eight (measured).
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None  # glibc only
    if trim is not None:
        trim(0)
