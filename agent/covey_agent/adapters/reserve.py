"""Room that is kept for the agent itself: a device whose disk has filled up must still be able to start and serve.

SQLite needs a few files and some pages to open the state database after a clean stop. Without room for them the agent could not
start, and the model that is there would serve nobody. So a little is held back, and given up when it is needed.
"""

import logging
import os
from contextlib import suppress
from pathlib import Path

logger = logging.getLogger(__name__)
FILES = 4  # not one large one: a file system may be out of inodes instead of blocks
FILE_BYTES = 256 * 1024


class Reserve:
    """A folder with files that hold nothing."""

    def __init__(self, folder: Path) -> None:
        self._files = [folder / str(number) for number in range(FILES)]
        self._is_needed = False

    def fill(self) -> None:
        """Hold back what is missing, unless this very start needed it. Having no room is no error: the next start tries again."""
        for path in self._files:
            if self._is_needed or path.exists():
                continue
            try:
                path.parent.mkdir(mode=0o700, exist_ok=True)
                _allocate(path)
            except OSError as exc:
                logger.warning("no room can be held back for the agent itself: %s", exc.strerror)
                return

    def give_up(self) -> bool:
        """Make room; whether there was anything to give."""
        self._is_needed = True
        held = [path for path in self._files if path.exists()]
        for path in held:
            with suppress(OSError):
                path.unlink()
        return any(not path.exists() for path in held)


def _allocate(path: Path) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.posix_fallocate(fd, 0, FILE_BYTES)
    except OSError:
        path.unlink()
        raise
    finally:
        os.close(fd)
