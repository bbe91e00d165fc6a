"""One agent per state directory: an advisory lock that the kernel releases however the holder dies."""

import errno
import fcntl
import logging
import os
from pathlib import Path

from covey_agent.errors import AlreadyRunningError, StateError

logger = logging.getLogger(__name__)


class StateLock:
    """Holds `agent.lock`; its content is the holder's process id, for a person to read."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    @classmethod
    def acquire(cls, path: Path) -> "StateLock":
        """Take the lock, or raise AlreadyRunningError."""
        try:
            fd = _open(path)
        except OSError as exc:
            raise StateError(f"cannot open {path}: {exc.strerror}") from exc
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            holder = os.pread(fd, 32, 0).decode("ascii", "replace").strip()
            os.close(fd)
            raise AlreadyRunningError(f"another agent (process {holder or 'unknown'}) already runs on {path.parent}") from exc
        try:
            os.ftruncate(fd, 0)
            os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        except OSError as exc:  # the lock holds without its text: a full disk is no reason not to serve
            logger.warning("cannot write the process id into %s: %s", path, exc.strerror)
        return cls(fd)

    def release(self) -> None:
        """Let the next one in."""
        os.close(self._fd)


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as exc:
        if exc.errno != errno.EROFS:
            raise
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC)  # enough for a lock


def find_holder(path: Path) -> int | None:
    """The process id of the agent that runs on this state directory, or None."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        text = os.pread(fd, 32, 0).decode("ascii", "replace").strip()
        return int(text) if text.isdecimal() else None
    finally:
        os.close(fd)
    return None
