"""The state database on a real disk: transactions, the append-only ledger, readings, kill -9, unreadable files."""

import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from covey_agent.adapters.ledger_file import LedgerFile
from covey_agent.adapters.store_readings import SqliteReadings
from covey_agent.adapters.store_sqlite import Database, SqliteState, open_database, open_read_only
from covey_agent.core.buffer import Entry
from covey_agent.core.policy import LedgerEntry
from covey_agent.errors import StoreError
from covey_contract.messages import Priority, PrivacyPlan

PLAN = PrivacyPlan(level="record", noise_multiplier=1.0, clipping_norm=1.0, sample_rate=0.1, steps=10, delta=1e-5)


def charge(number: int, run: str = "run-1") -> LedgerEntry:
    return LedgerEntry(run=run, round=number, dataset="digits", plan=PLAN, at=number)


def entry(sequence: int, *, size: int = 10, priority: Priority = Priority.METRIC, at: int = 5) -> Entry:
    return Entry(sequence=sequence, at=at, priority=priority, data=b"x" * size)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = open_database(tmp_path / "state.db")
    yield database
    database.close()


@pytest.fixture
def store(tmp_path: Path, database: Database) -> SqliteState:
    return SqliteState(database, LedgerFile(tmp_path / "ledger.jsonl"))


@pytest.fixture
def readings(database: Database, store: SqliteState) -> SqliteReadings:
    return SqliteReadings(database, store)


def test_values_are_saved_together_replaced_and_deleted(store: SqliteState) -> None:
    store.save({"a": b"1", "b": b"2"})
    store.save({"a": b"3", "b": None})
    assert (store.load("a"), store.load("b"), store.load("c")) == (b"3", None, None)


def test_failed_transaction_changes_nothing(store: SqliteState) -> None:
    store.save({"a": b"1"})
    with pytest.raises(StoreError):
        store.save({"a": b"2", "b": object()})  # type: ignore[dict-item]  # a value that SQLite refuses
    assert store.load("a") == b"1"


def test_numbers_are_handed_out_once(store: SqliteState) -> None:
    assert [store.reserve("sequence", 100), store.reserve("sequence", 10), store.reserve("other", 1)] == [1, 101, 1]


def test_replies_are_found_repeated_and_forgotten(store: SqliteState) -> None:
    store.save_reply("c1", b"accepted", expires_at=100)
    store.save_reply("c1", b"failed", expires_at=100)
    store.save_reply("c2", b"done", expires_at=200)
    assert store.find_reply("c1") == b"failed"
    assert store.open_replies(150) == [b"done"]
    store.forget_replies(150)
    assert (store.find_reply("c1"), store.find_reply("c2")) == (None, b"done")


def test_ledger_can_only_grow(store: SqliteState, tmp_path: Path) -> None:
    store.append_charge(charge(1))
    store.append_charge(charge(1))
    store.append_charge(charge(2))
    assert store.charges() == [charge(1), charge(2)]
    other = sqlite3.connect(tmp_path / "state.db")
    for attack in ("UPDATE ledger SET round = 9", "DELETE FROM ledger"):
        with pytest.raises(sqlite3.DatabaseError, match="append-only"):
            other.execute(attack)
    other.close()


def test_ledger_survives_the_loss_of_the_database(tmp_path: Path, store: SqliteState, database: Database) -> None:
    store.append_charge(charge(1))
    database.close()
    (tmp_path / "state.db").write_bytes(b"garbage" * 1000)
    with open_closing(tmp_path) as fresh:
        assert SqliteState(fresh, LedgerFile(tmp_path / "ledger.jsonl")).charges() == [charge(1)]
    assert len(list(tmp_path.glob("state.db.unreadable-*"))) == 1


def test_torn_last_line_of_the_ledgers_copy_costs_only_itself(tmp_path: Path) -> None:
    ledger = LedgerFile(tmp_path / "ledger.jsonl")
    ledger.append(charge(1))
    with (tmp_path / "ledger.jsonl").open("ab") as file:
        file.write(b'{"run":"run-1","rou')
    ledger.append(charge(2))
    assert ledger.entries() == [charge(1), charge(2)]


def test_epoch_is_kept_and_a_new_database_has_another(
    tmp_path: Path, readings: SqliteReadings, store: SqliteState, database: Database
) -> None:
    assert SqliteReadings(database, store).epoch == readings.epoch
    with open_closing(tmp_path / "other") as fresh:
        other = SqliteReadings(fresh, SqliteState(fresh, LedgerFile(tmp_path / "other" / "ledger.jsonl")))
        assert other.epoch != readings.epoch


def test_readings_leave_in_order_when_acknowledged(readings: SqliteReadings) -> None:
    readings.append([entry(3), entry(1), entry(7)], durable=False)
    assert [one.sequence for one in readings.oldest(10)] == [1, 3, 7]
    readings.delete_through(3)
    assert readings.oldest(10) == [entry(7)]
    assert readings.sizes()[Priority.METRIC] == 10


def test_dropping_takes_the_oldest_of_one_priority_and_counts_them(readings: SqliteReadings) -> None:
    readings.append([entry(1), entry(2), entry(3), entry(4, priority=Priority.ALARM)], durable=False)
    assert readings.drop_oldest(Priority.METRIC, size=15) == 2
    assert [one.sequence for one in readings.oldest(10)] == [3, 4]
    assert readings.lost() == {Priority.METRIC: 2}
    readings.add_lost(Priority.METRIC, 3)
    assert readings.lost() == {Priority.METRIC: 5}


def test_readings_of_a_time_span_can_be_dropped(readings: SqliteReadings) -> None:
    readings.append([entry(1, at=10), entry(2, at=20, priority=Priority.RESULT), entry(3, at=30)], durable=False)
    assert readings.drop_made(10, 30) == 2
    assert [one.sequence for one in readings.oldest(10)] == [3]
    assert readings.lost() == {Priority.METRIC: 1, Priority.RESULT: 1}
    assert readings.drop_made(0, 0) == 0


def test_looking_does_not_need_the_agent_to_stop(tmp_path: Path, store: SqliteState) -> None:
    store.save({"a": b"1"})
    reader = open_read_only(tmp_path / "state.db")
    with pytest.raises(StoreError), reader.transaction(durable=False) as connection:
        connection.execute("DELETE FROM value")
    store.save({"a": b"2"})
    assert reader.query("SELECT data FROM value WHERE key = 'a'") == [(b"2",)]
    reader.close()


def test_directory_that_cannot_be_written_is_an_error_with_the_path(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"missing/state\.db"):
        open_database(tmp_path / "missing" / "state.db")


WRITER = """
import sys
from pathlib import Path
from covey_agent.adapters.ledger_file import LedgerFile
from covey_agent.adapters.store_readings import SqliteReadings
from covey_agent.adapters.store_sqlite import SqliteState, open_database
from covey_agent.core.buffer import Entry
from covey_contract.messages import Priority
folder = Path(sys.argv[1])
database = open_database(folder / "state.db")
store = SqliteState(database, LedgerFile(folder / "ledger.jsonl"))
readings = SqliteReadings(database, store)
while True:
    first = store.reserve("sequence", 5)
    readings.append([Entry(first + i, 1, Priority.METRIC, b"x" * 50) for i in range(5)], durable=False)
    store.save({"a": str(first).encode(), "b": str(first).encode()})
    print(first, flush=True)
"""


@pytest.mark.slow
def test_kill_9_in_the_middle_of_writing_loses_nothing_that_was_told(tmp_path: Path) -> None:
    for written in (1, 7, 23):
        process = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE)
        assert process.stdout is not None
        told = [int(process.stdout.readline()) for _ in range(written)][-1]
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        with open_closing(tmp_path) as database:
            store = SqliteState(database, LedgerFile(tmp_path / "ledger.jsonl"))
            readings = SqliteReadings(database, store)
            assert store.load("a") == store.load("b")
            assert int(store.load("a") or b"0") >= told
            held = [one.sequence for one in readings.oldest(10_000)]
            assert len(held) == len(set(held))
            assert len(held) % 5 == 0
            assert set(range(told, told + 5)) <= set(held)
            assert store.reserve("sequence", 1) > max(held)


@contextmanager
def open_closing(folder: Path) -> Iterator[Database]:
    """A database for the length of a block."""
    folder.mkdir(exist_ok=True)
    database = open_database(folder / "state.db")
    try:
        yield database
    finally:
        database.close()
