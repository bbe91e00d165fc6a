"""What a child process of `covey up` is: how it is started, and how one sees that it is ready.

A capability that needs a process (the broker, the SuperLink) builds a `ProcessSpec`; the supervisor alone starts, watches,
restarts and stops it.
"""

import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class ProcessSpec:
    """One supervised process. `ready` asks once, quickly, whether it serves; the supervisor asks again until a deadline."""

    name: str
    argv: list[str]
    env: dict[str, str]
    cwd: Path | None
    ready: Callable[[], bool]
    stop_signal: int = signal.SIGTERM
