"""`run/live.json`: what only the running process knows, for `covey-agent status`. Written when it changes; without fsync."""

import logging
import os
from pathlib import Path

import msgspec

logger = logging.getLogger(__name__)
FILE_NAME = "live.json"


class Live(msgspec.Struct, frozen=True):
    """The running agent in a few words."""

    pid: int
    boot: str
    connected: bool
    since: int  # of `connected`, ms
    accepting_slot: str = ""
    training: str = ""
    connection: str = ""  # why not connected
    version: str = ""  # of the agent


class LiveFile:
    """Writes the file; a full disk is no reason to stop."""

    def __init__(self, run_dir: Path) -> None:
        self._path = run_dir / FILE_NAME
        self._last: Live | None = None

    def write(self, live: Live) -> None:
        """Replace the file if anything changed."""
        if live == self._last:
            return
        self._last = live
        temporary = self._path.with_suffix(".tmp")
        try:
            temporary.write_bytes(msgspec.json.encode(live))
            temporary.rename(self._path)
        except OSError as exc:
            logger.debug("cannot write %s: %s", self._path, exc)

    def remove(self) -> None:
        """The agent stops."""
        self._path.unlink(missing_ok=True)


def read_live(run_dir: Path) -> Live | None:
    """What the running agent wrote; None if there is none, or it is of a process that is gone."""
    try:
        live = msgspec.json.decode((run_dir / FILE_NAME).read_bytes(), type=Live)
    except (OSError, msgspec.DecodeError):
        return None
    return live if _is_there(live.pid) else None


def _is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it is another user's, and there
        return True
    return True
