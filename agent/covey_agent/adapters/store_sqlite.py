"""`state.db`: what the agent must not forget, in one SQLite file.

Rules:
- Write-ahead log. Intentions, the ledger, replies and counters are on the disk (fsync) before the call returns; readings are not,
  so that telemetry does not wear out flash: a power cut may cost the last moments of them, a kill -9 costs nothing.
- Only the thread of the event loop uses it; other processes open it read-only (`open_read_only`).
- A database that cannot be read is set aside, never deleted, and a new one begins: a device must serve without its history. The
  ledger is kept twice (`ledger_file.py`), because a lost ledger would be a budget spent again.
- An older agent opens what a newer one wrote, because an upgrade may be taken back: within one layout, columns are only added, with
  defaults, and every statement names its columns. A file of a later layout is refused and left as it is.
"""

import logging
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import msgspec

from covey_agent.adapters.ledger_file import LedgerFile
from covey_agent.core.policy import LedgerEntry
from covey_agent.errors import StoreError
from covey_contract.messages import PrivacyPlan

logger = logging.getLogger(__name__)
DATABASE_NAME = "state.db"
LAYOUT = 1  # raised only by a change that an older agent could not live with; see docs/adr/0023
_SAVE = "INSERT INTO value (key, data) VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET data = excluded.data"
_SCHEMA = """
CREATE TABLE IF NOT EXISTS value (key TEXT PRIMARY KEY, data BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS counter (name TEXT PRIMARY KEY, next INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS reply (command TEXT PRIMARY KEY, payload BLOB NOT NULL, expires_at INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS ledger (
    id INTEGER PRIMARY KEY, run TEXT NOT NULL, round INTEGER NOT NULL, dataset TEXT NOT NULL, plan BLOB NOT NULL, at INTEGER NOT NULL,
    UNIQUE (run, round)
);
CREATE TRIGGER IF NOT EXISTS ledger_is_not_changed BEFORE UPDATE ON ledger BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
CREATE TRIGGER IF NOT EXISTS ledger_is_not_deleted BEFORE DELETE ON ledger BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
CREATE TABLE IF NOT EXISTS reading (sequence INTEGER PRIMARY KEY, at INTEGER NOT NULL, priority INTEGER NOT NULL, data BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS lost (priority INTEGER PRIMARY KEY, count INTEGER NOT NULL) WITHOUT ROWID;
"""


class Database:
    """The connection, with a transaction that is durable or cheap."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    @contextmanager
    def transaction(self, *, durable: bool) -> Iterator[sqlite3.Connection]:
        """All or nothing; with `durable`, on the disk when the block ends."""
        try:
            self._connection.execute(f"PRAGMA synchronous={'FULL' if durable else 'NORMAL'}")
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")
        except sqlite3.Error as exc:
            raise StoreError(f"cannot write the state database: {exc}") from exc

    def query(self, sql: str, values: tuple[object, ...] = ()) -> list[tuple[object, ...]]:
        """All rows."""
        try:
            return self._connection.execute(sql, values).fetchall()
        except sqlite3.Error as exc:
            raise StoreError(f"cannot read the state database: {exc}") from exc

    def close(self) -> None:
        """Close the file; the write-ahead log is folded in."""
        self._connection.close()


def open_database(path: Path) -> Database:
    """Open or create `path`, setting an unreadable one aside."""
    try:
        return _open(path)
    except sqlite3.OperationalError as exc:  # no rights, no room: setting the file aside would not help
        raise StoreError(f"cannot open {path}: {exc}") from exc
    except sqlite3.DatabaseError:
        aside = path.with_name(f"{path.name}.unreadable-{time.time_ns()}")
        logger.exception("the state database is unreadable; it is kept as %s and a new one begins", aside.name)
        for suffix in ("", "-wal", "-shm"):
            part = path.with_name(path.name + suffix)
            if part.exists():
                part.rename(aside.with_name(aside.name + suffix))
    try:
        return _open(path)
    except sqlite3.DatabaseError as exc:
        raise StoreError(f"cannot create {path}: {exc}") from exc


def open_read_only(path: Path) -> Database:
    """For commands that look while the daemon works."""
    try:
        connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None, timeout=5.0)
        connection.execute("SELECT count(*) FROM value")
    except sqlite3.Error as exc:
        raise StoreError(f"cannot read {path}: {exc}") from exc
    return Database(connection)


def _open(path: Path) -> Database:
    connection = sqlite3.connect(path, isolation_level=None, timeout=10.0)
    try:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA cache_size=-256")
        connection.execute("PRAGMA wal_autocheckpoint=200")
        connection.execute("PRAGMA journal_size_limit=1048576")
        result = connection.execute("PRAGMA quick_check(1)").fetchone()
        if result != ("ok",):
            raise sqlite3.DatabaseError(f"quick_check says {result[0]}")
        _check_layout(connection, path)
        connection.executescript(_SCHEMA)
    except (sqlite3.Error, StoreError):
        connection.close()
        raise
    path.chmod(0o600)
    return Database(connection)


def _check_layout(connection: sqlite3.Connection, path: Path) -> None:
    (layout,) = connection.execute("PRAGMA user_version").fetchone()
    if layout > LAYOUT:
        raise StoreError(f"{path} was written by a newer agent, in layout {layout}; this one reads up to {LAYOUT}. It is left as it is")
    if layout < LAYOUT:
        connection.execute(f"PRAGMA user_version={LAYOUT}")


class SqliteState:
    """Values, counters, replies and the ledger: everything but the readings."""

    def __init__(self, database: Database, ledger_file: LedgerFile) -> None:
        self._database = database
        self._ledger_file = ledger_file
        self._restore_ledger()

    def load(self, key: str) -> bytes | None:
        """The value, or None."""
        rows = self._database.query("SELECT data FROM value WHERE key = ?", (key,))
        return _bytes(rows[0][0]) if rows else None

    def save(self, values: Mapping[str, bytes | None], *, durable: bool = True) -> None:
        """All in one transaction; None deletes."""
        with self._database.transaction(durable=durable) as connection:
            for key, data in values.items():
                if data is None:
                    connection.execute("DELETE FROM value WHERE key = ?", (key,))
                else:
                    connection.execute(_SAVE, (key, data))

    def reserve(self, counter: str, count: int) -> int:
        """The first of `count` fresh numbers."""
        with self._database.transaction(durable=True) as connection:
            row = connection.execute("SELECT next FROM counter WHERE name = ?", (counter,)).fetchone()
            first = int(row[0]) if row else 1
            connection.execute(
                "INSERT INTO counter (name, next) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET next = excluded.next",
                (counter, first + count),
            )
        return first

    def save_reply(self, command: str, payload: bytes, *, expires_at: int) -> None:
        """Remember the answer to a command; a later answer to the same one replaces it."""
        with self._database.transaction(durable=True) as connection:
            connection.execute(
                "INSERT OR REPLACE INTO reply (command, payload, expires_at) VALUES (?, ?, ?)", (command, payload, expires_at)
            )

    def find_reply(self, command: str) -> bytes | None:
        """The answer already given."""
        rows = self._database.query("SELECT payload FROM reply WHERE command = ?", (command,))
        return _bytes(rows[0][0]) if rows else None

    def open_replies(self, now: int) -> list[bytes]:
        """The answers to commands that have not expired."""
        return [_bytes(row[0]) for row in self._database.query("SELECT payload FROM reply WHERE expires_at > ?", (now,))]

    def forget_replies(self, before: int) -> None:
        """Drop the answers to commands that expired before this time."""
        with self._database.transaction(durable=False) as connection:
            connection.execute("DELETE FROM reply WHERE expires_at < ?", (before,))

    def append_charge(self, entry: LedgerEntry) -> None:
        """Durable twice: the copy first, because a charge too many is safe and one too few is not."""
        self._ledger_file.append(entry)
        with self._database.transaction(durable=True) as connection:
            _insert_charge(connection, entry)

    def charges(self) -> list[LedgerEntry]:
        """The whole ledger, oldest first."""
        return read_charges(self._database)

    def _restore_ledger(self) -> None:
        known = {(entry.run, entry.round) for entry in self.charges()}
        missing = [entry for entry in self._ledger_file.entries() if (entry.run, entry.round) not in known]
        if missing:
            logger.warning("%d charges were in the copy of the ledger only: put back", len(missing))
            with self._database.transaction(durable=True) as connection:
                for entry in missing:
                    _insert_charge(connection, entry)


def read_charges(database: Database) -> list[LedgerEntry]:
    """The ledger of any opened state database."""
    rows = database.query("SELECT run, round, dataset, plan, at FROM ledger ORDER BY id")
    return [
        LedgerEntry(
            run=str(run), round=_int(number), dataset=str(dataset), plan=msgspec.json.decode(_bytes(plan), type=PrivacyPlan), at=_int(at)
        )
        for run, number, dataset, plan, at in rows
    ]


def _insert_charge(connection: sqlite3.Connection, entry: LedgerEntry) -> None:
    values = (entry.run, entry.round, entry.dataset, msgspec.json.encode(entry.plan), entry.at)
    connection.execute("INSERT OR IGNORE INTO ledger (run, round, dataset, plan, at) VALUES (?, ?, ?, ?, ?)", values)


def _bytes(value: object) -> bytes:
    if not isinstance(value, bytes):
        raise StoreError(f"expected bytes in the state database, got {type(value).__name__}")
    return value


def _int(value: object) -> int:
    if not isinstance(value, int):
        raise StoreError(f"expected a number in the state database, got {type(value).__name__}")
    return value
