"""Leaving the fleet for good, on disk: the note that says so comes first, then what is to be wiped goes; cut off anywhere, it goes on.

What is wiped: keys and certificates, models, readings, what was fetched and trusted. What is never wiped: the privacy ledger, which is
its owner's record of what left this machine, and `agent.toml`, which is its owner's text.
"""

import logging
import sqlite3
from pathlib import Path

import msgspec

from covey_agent.adapters.ledger_file import LEDGER_NAME, LedgerFile
from covey_agent.adapters.slot_files import fsync_folder, write_atomically
from covey_agent.adapters.store_sqlite import DATABASE_NAME, SqliteState, open_database
from covey_agent.errors import DecommissionedError, StateError, StoreError

logger = logging.getLogger(__name__)
FILE_NAME = "decommissioned.json"
WIPED = ("identity", "identity.new", "identity.old", "identity.tmp", "tuf", "fetch", "slots", "training", "run", "reserve")


class Left(msgspec.Struct, frozen=True):
    """`decommissioned.json`."""

    device: str
    command: str
    at: int
    wipe: bool


def note_leaving(state_dir: Path, left: Left) -> None:
    """From now on this agent does not start again. Raises StateError."""
    try:
        write_atomically(state_dir / FILE_NAME, msgspec.json.encode(left), mode=0o600)
    except OSError as exc:
        raise StateError(f"cannot write to {state_dir}: {exc.strerror}") from exc


def read_left(state_dir: Path) -> Left | None:
    """The note, if this device has left. An unreadable one counts: it was written for no other reason."""
    try:
        return msgspec.json.decode((state_dir / FILE_NAME).read_bytes(), type=Left)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError):
        return Left(device="", command="", at=0, wipe=False)


def refuse_decommissioned(state_dir: Path) -> None:
    """Finish what was begun, then raise DecommissionedError, if this device has left."""
    left = read_left(state_dir)
    if left is None:
        return
    finish_leaving(state_dir)
    raise DecommissionedError(
        f"{left.device or 'this device'} was decommissioned by its fleet and does not start again; "
        "to join a fleet anew: covey-agent enroll --token TOKEN --replace"
    )


def finish_leaving(state_dir: Path) -> None:
    """Wipe, if the note says so; again is no error."""
    left = read_left(state_dir)
    if left is None or not left.wipe:
        return
    try:
        for name in WIPED:
            _remove(state_dir / name)
        _keep_only_the_ledger(state_dir)
        fsync_folder(state_dir)
    except (OSError, StoreError) as exc:
        logger.exception("%s could not be wiped; the next start goes on", state_dir)
        raise StateError(f"cannot wipe {state_dir}: {exc}") from exc
    logger.warning("wiped: keys, models, readings. Kept: the privacy ledger")


def _keep_only_the_ledger(state_dir: Path) -> None:
    """The database goes only when the ledger's other copy holds every charge."""
    path = state_dir / DATABASE_NAME
    copy = LedgerFile(state_dir / LEDGER_NAME)
    if path.exists():
        database = open_database(path)
        try:
            known = {(entry.run, entry.round) for entry in copy.entries()}
            for entry in SqliteState(database, copy).charges():
                if (entry.run, entry.round) not in known:
                    copy.append(entry)
        except sqlite3.Error as exc:
            raise StoreError(f"cannot read {path}: {exc}") from exc
        finally:
            database.close()
    for part in state_dir.glob(f"{DATABASE_NAME}*"):
        part.unlink(missing_ok=True)


def _remove(path: Path) -> None:
    """A file, or a folder with everything in it. Not by `shutil`, which would stay in the idle process for ever."""
    if path.is_dir() and not path.is_symlink():
        for inner in path.iterdir():
            _remove(inner)
        path.rmdir()
    else:
        path.unlink(missing_ok=True)
