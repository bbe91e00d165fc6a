"""The ledger's second copy: one JSON line a charge, appended and fsynced, readable without any tool.

A database that breaks may be set aside; the record of what was spent may not get lost with it.
"""

import logging
import os
from pathlib import Path

import msgspec

from covey_agent.core.policy import LedgerEntry
from covey_agent.errors import StoreError

logger = logging.getLogger(__name__)
LEDGER_NAME = "ledger.jsonl"


class LedgerFile:
    """Append-only."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def append(self, entry: LedgerEntry) -> None:
        """On the disk when this returns. A torn last line, left by a power cut, is closed first."""
        try:
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            try:
                size = os.fstat(fd).st_size
                torn = size > 0 and os.pread(fd, 1, size - 1) != b"\n"
                os.write(fd, (b"\n" if torn else b"") + msgspec.json.encode(entry) + b"\n")
                os.fsync(fd)
            finally:
                os.close(fd)
        except OSError as exc:
            raise StoreError(f"cannot append to {self._path}: {exc.strerror}") from exc

    def entries(self) -> list[LedgerEntry]:
        """Every line that is whole."""
        if not self._path.exists():
            return []
        entries: list[LedgerEntry] = []
        for number, line in enumerate(self._path.read_bytes().splitlines(), start=1):
            if not line:
                continue
            try:
                entries.append(msgspec.json.decode(line, type=LedgerEntry))
            except msgspec.DecodeError as exc:
                logger.warning("line %d of %s is no charge: %s", number, self._path, exc)
        return entries
