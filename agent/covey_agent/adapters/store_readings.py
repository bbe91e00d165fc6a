"""Readings on disk, in the state database: in order of their sequence, bounded by who calls `drop_oldest`."""

import secrets
from collections.abc import Mapping, Sequence

from covey_agent.adapters.store_sqlite import Database, SqliteState
from covey_agent.core.buffer import Entry
from covey_contract.messages import Priority

_EPOCH = "epoch"
_STEP = 500  # readings looked at at once: a full buffer holds hundreds of thousands


class SqliteReadings:
    """The buffer's disk part."""

    def __init__(self, database: Database, state: SqliteState) -> None:
        self._database = database
        stored = state.load(_EPOCH)
        if stored is None:
            # A new database: sequence numbers begin again, so the epoch must be one that was never used.
            stored = _new_epoch()
            state.save({_EPOCH: stored})
        self._epoch = stored.decode("ascii")
        rows = database.query("SELECT priority, COALESCE(SUM(LENGTH(data)), 0) FROM reading GROUP BY priority")
        self._sizes = {Priority(priority): _int(size) for priority, size in rows}

    @property
    def epoch(self) -> str:
        """Names this database's sequence numbers."""
        return self._epoch

    def begin_epoch(self, *, told: Mapping[Priority, int]) -> None:
        """From now on everything held is of a new epoch, under its old numbers. Losses that the server was `told` stay with the old one."""
        epoch = _new_epoch()
        with self._database.transaction(durable=True) as connection:
            connection.execute("UPDATE value SET data = ? WHERE key = ?", (epoch, _EPOCH))
            for priority, count in told.items():
                connection.execute("UPDATE lost SET count = MAX(count - ?, 0) WHERE priority = ?", (count, priority.value))
        self._epoch = epoch.decode("ascii")

    def append(self, entries: Sequence[Entry], *, durable: bool, settles: Sequence[str] = ()) -> None:
        """Keep these, whose sequence numbers are new, and forget the stored values that they settle."""
        with self._database.transaction(durable=durable) as connection:
            rows = [(entry.sequence, entry.at, entry.priority.value, entry.data) for entry in entries]
            connection.executemany("INSERT INTO reading (sequence, at, priority, data) VALUES (?, ?, ?, ?)", rows)
            connection.executemany("DELETE FROM value WHERE key = ?", [(key,) for key in settles])
        for entry in entries:
            self._sizes[entry.priority] = self._sizes.get(entry.priority, 0) + len(entry.data)

    def oldest(self, limit: int) -> list[Entry]:
        """The first `limit` readings by sequence."""
        rows = self._database.query("SELECT sequence, at, priority, data FROM reading ORDER BY sequence LIMIT ?", (limit,))
        return [
            Entry(sequence=_int(sequence), at=_int(at), priority=Priority(priority), data=data)
            for sequence, at, priority, data in rows
            if isinstance(data, bytes)
        ]

    def delete_through(self, sequence: int) -> None:
        """Forget everything up to and including `sequence`: the server has it."""
        self._delete("sequence <= ?", (sequence,))

    def drop_oldest(self, priority: Priority, *, size: int) -> int:
        """Drop at least `size` bytes of one priority, oldest first, count them as lost, and return how many readings went."""
        last, dropped = -1, 0
        while dropped < size:
            rows = self._database.query(
                "SELECT sequence, LENGTH(data) FROM reading WHERE priority = ? AND sequence > ? ORDER BY sequence LIMIT ?",
                (priority.value, last, _STEP),
            )
            if not rows:
                break
            for sequence, length in rows:
                last, dropped = _int(sequence), dropped + _int(length)
                if dropped >= size:
                    break
        return self._drop("priority = ? AND sequence <= ?", (priority.value, last)) if dropped else 0

    def drop_made(self, since: int, before: int) -> int:
        """Drop readings whose time is in [since, before), count them as lost, and return how many went."""
        return self._drop("at >= ? AND at < ?", (since, before)) if since < before else 0

    def sizes(self) -> dict[Priority, int]:
        """Bytes held, by priority."""
        return dict(self._sizes)

    def lost(self) -> dict[Priority, int]:
        """How many were dropped in this epoch, by priority."""
        return {Priority(priority): _int(count) for priority, count in self._database.query("SELECT priority, count FROM lost")}

    def add_lost(self, priority: Priority, count: int) -> None:
        """Count readings that were dropped before they reached the disk."""
        with self._database.transaction(durable=False) as connection:
            connection.execute(_ADD_LOST, (priority.value, count))

    def _drop(self, condition: str, values: tuple[object, ...]) -> int:
        # `condition` is one of the constants above, never text from outside.
        counts = self._database.query(f"SELECT priority, COUNT(*) FROM reading WHERE {condition} GROUP BY priority", values)  # noqa: S608
        if not counts:
            return 0
        self._delete(condition, values, lost=[(priority, count) for priority, count in counts])
        return sum(_int(count) for _, count in counts)

    def _delete(self, condition: str, values: tuple[object, ...], *, lost: Sequence[tuple[object, object]] = ()) -> None:
        gone = self._database.query(f"SELECT priority, SUM(LENGTH(data)) FROM reading WHERE {condition} GROUP BY priority", values)  # noqa: S608
        if not gone:
            return
        with self._database.transaction(durable=False) as connection:
            connection.execute(f"DELETE FROM reading WHERE {condition}", values)  # noqa: S608
            connection.executemany(_ADD_LOST, lost)
        for priority, size in gone:
            self._sizes[Priority(priority)] = self._sizes.get(Priority(priority), 0) - _int(size)


_ADD_LOST = "INSERT INTO lost (priority, count) VALUES (?, ?) ON CONFLICT (priority) DO UPDATE SET count = count + excluded.count"


def _new_epoch() -> bytes:
    return secrets.token_hex(8).encode("ascii")


def _int(value: object) -> int:
    if not isinstance(value, int):
        raise TypeError(f"expected a number in the state database, got {type(value).__name__}")
    return value
