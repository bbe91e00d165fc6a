"""When a new version of the agent is proven and when it has failed: pure, fed with what it said and the time. Used by `launch.py`.

Of the standard library alone, like everything that the launcher needs.
"""

from collections.abc import Mapping
from dataclasses import dataclass

EXIT_USAGE, EXIT_SECOND_AGENT, EXIT_DECOMMISSIONED = 2, 6, 8
READY, CONNECTED = b"READY=1", b"X_COVEY_CONNECTED=1"


@dataclass(frozen=True, slots=True)
class Limits:
    """How long what may take, in seconds; variables `COVEY_LAUNCH_...` change them."""

    start_s: float = 90.0  # from the start to READY
    connect_s: float = 600.0  # from READY to the connection, where the version before had one
    settle_s: float = 60.0  # that it lives on after that
    silence_s: float = 60.0  # without a beat of its event loop
    pause_s: float = 2.0  # between two starts
    max_starts: int = 3

    @classmethod
    def read(cls, environment: Mapping[str, str]) -> "Limits":
        """The defaults, or what the environment says."""
        given = {name: environment.get(f"COVEY_LAUNCH_{name.upper()}", "") for name in cls.__slots__}
        floats = {name: float(text) for name, text in given.items() if text and name != "max_starts"}
        return cls(**floats, max_starts=int(given["max_starts"] or 3))


@dataclass(slots=True)
class Signs:
    """What one start has shown so far; all times are of one monotonic clock."""

    limits: Limits
    needs_connection: bool
    started: float
    last_beat: float = 0.0
    ready_at: float = 0.0
    connected_at: float = 0.0

    def hear(self, lines: list[bytes], now: float) -> None:
        """The agent said something."""
        self.last_beat = now
        self.ready_at = self.ready_at or (now if READY in lines else 0.0)
        self.connected_at = self.connected_at or (now if CONNECTED in lines else 0.0)

    def is_proven(self, now: float) -> bool:
        """Whether it has shown everything, and lived on."""
        if not self.ready_at or (self.needs_connection and not self.connected_at):
            return False
        since = max(self.ready_at, self.connected_at if self.needs_connection else 0.0)
        return now - since >= self.limits.settle_s

    def find_fault(self, now: float, *, proven: bool) -> str:
        """Why it is to be ended, or ""."""
        limits = self.limits
        if not self.ready_at:
            return f"it was not ready within {limits.start_s:g} s" if now - self.started > limits.start_s else ""
        if now - self.last_beat > limits.silence_s:
            return f"its event loop gave no sign of life for {limits.silence_s:g} s"
        if self.needs_connection and not proven and not self.connected_at and now - self.ready_at > limits.connect_s:
            return f"it did not connect within {limits.connect_s:g} s, and the version before had been connected"
        return ""


@dataclass(frozen=True, slots=True)
class End:
    """How one start ended."""

    code: int
    fault: str = ""  # why the version failed it; "": it did not
    counts: bool = True  # whether the start says anything about the version
    at_once: bool = False  # another start would end the same way


def judge_end(code: int, *, why_killed: str, proven: bool, asked_to_stop: bool, restart_code: int) -> End:
    """What the end of a start says; a negative `code` is a signal's number."""
    shown = 128 - code if code < 0 else code
    if proven:
        return End(shown)
    if asked_to_stop or shown in {EXIT_SECOND_AGENT, EXIT_DECOMMISSIONED, restart_code}:
        return End(shown, counts=False)
    fault = why_killed or (f"it was killed by signal {-code}" if code < 0 else f"it ended with exit code {code}")
    return End(shown, fault, at_once=code == EXIT_USAGE)
