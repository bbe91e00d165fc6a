"""How fast readings go into the buffer on disk and out of it again, against what is usually written for this.

    .venv/bin/python benchmarks/buffer_rates.py --readings 20000 --runs 3

The agent's own buffer, as the daemon uses it: batches of a minute's readings in one write without a sync (metrics), one urgent reading in a
write of its own with a sync (alarms), and a drain in batches as the server acknowledges them. Beside it in the same call: one INSERT a
reading with SQLite's safe default (synchronous = FULL, a rollback journal), and a file of JSON lines with and without fsync, drained by
rewriting what is left. Prints readings a second (medians), bytes written to the disk for a reading, and ratios to the peers.
"""

import argparse
import json
import os
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TextIO

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.fakes.usage import written_bytes

from covey_agent.adapters.ledger_file import LedgerFile
from covey_agent.adapters.store_readings import SqliteReadings
from covey_agent.adapters.store_sqlite import SqliteState, open_database
from covey_agent.core.buffer import Entry, cut_batch, encode_batch, make_entry
from covey_contract.limits import MAX_READINGS_PER_BATCH
from covey_contract.messages import Priority, Reading

MINUTE = 60  # readings at one a second


def reading(number: int, priority: Priority = Priority.METRIC) -> Reading:
    """As the machine's health is told."""
    values = {"cpu_percent": number % 100 / 3, "memory_bytes": 10**9 + number, "temperature_c": 51.5, "disk_free_bytes": 10**10}
    return Reading(at=1_795_700_000_000 + number * 1000, kind="system", values=dict(values), priority=priority)


def covey(folder: Path, count: int) -> dict[str, float]:
    """The agent's own."""
    database = open_database(folder / "state.db")
    store = SqliteReadings(database, SqliteState(database, LedgerFile(folder / "ledger.jsonl")))
    entries = [make_entry(number, reading(number)) for number in range(1, count + 1)]
    before = written_bytes(os.getpid())
    minutes = [entries[start : start + MINUTE] for start in range(0, count, MINUTE)]
    batched = rate(count, lambda: append_all(store, minutes, durable=False))
    cost = (written_bytes(os.getpid()) - before) / count
    urgent = [make_entry(count + number, reading(number, Priority.ALARM)) for number in range(1, count // 20 + 1)]
    synced = rate(len(urgent), lambda: append_all(store, [[entry] for entry in urgent], durable=True))
    total = count + len(urgent)
    drained = rate(total, lambda: drain(store))
    database.close()
    return {"write_a_second": batched, "synced_a_second": synced, "drain_a_second": drained, "bytes_a_reading": cost}


def append_all(store: SqliteReadings, batches: Sequence[Sequence[Entry]], *, durable: bool) -> None:
    """Each batch in a write of its own."""
    for batch in batches:
        store.append(batch, durable=durable)


def drain(store: SqliteReadings) -> None:
    """Batches as they would be sent, deleted as the server acknowledges them."""
    while entries := cut_batch(store.oldest(MAX_READINGS_PER_BATCH)):
        _, taken = encode_batch(store.epoch, entries, {})
        store.delete_through(entries[taken - 1].sequence)


def plain_sqlite(folder: Path, count: int) -> dict[str, float]:
    """One INSERT and COMMIT a reading."""
    count //= 20
    connection = sqlite3.connect(folder / "plain.db", isolation_level=None)
    connection.execute("CREATE TABLE reading (id INTEGER PRIMARY KEY, data TEXT)")
    texts = [json.dumps(as_plain(make_entry(number, reading(number)))) for number in range(1, count + 1)]
    before = written_bytes(os.getpid())
    written = rate(count, lambda: [connection.execute("INSERT INTO reading (data) VALUES (?)", (text,)) for text in texts])
    cost = (written_bytes(os.getpid()) - before) / count

    def empty() -> None:
        while rows := connection.execute("SELECT id, data FROM reading ORDER BY id LIMIT 500").fetchall():
            connection.execute("DELETE FROM reading WHERE id <= ?", (rows[-1][0],))

    drained = rate(count, empty)
    connection.close()
    return {"write_a_second": written, "synced_a_second": written, "drain_a_second": drained, "bytes_a_reading": cost}


def json_lines(folder: Path, count: int) -> dict[str, float]:
    """A file that grows, and is rewritten when its beginning was sent."""
    path = folder / "lines"
    lines = [json.dumps(as_plain(make_entry(number, reading(number)))) + "\n" for number in range(1, count + 1)]
    before = written_bytes(os.getpid())
    with path.open("w", encoding="utf-8") as file:
        written = rate(count, lambda: file.writelines(lines))
    cost = (written_bytes(os.getpid()) - before) / count
    few = count // 20
    with (folder / "synced").open("w", encoding="utf-8") as file:
        synced = rate(few, lambda: write_synced(file, lines[:few]))

    def empty() -> None:
        while left := path.read_text("utf-8").splitlines(keepends=True):
            draft = path.with_suffix(".new")
            draft.write_text("".join(left[500:]), "utf-8")
            draft.replace(path)

    return {"write_a_second": written, "synced_a_second": synced, "drain_a_second": rate(count, empty), "bytes_a_reading": cost}


def write_synced(file: TextIO, lines: Sequence[str]) -> None:
    """Each on the disk before the next."""
    for line in lines:
        file.write(line)
        file.flush()
        os.fsync(file.fileno())


def as_plain(entry: Entry) -> dict[str, object]:
    """What a line holds."""
    return {"sequence": entry.sequence, "at": entry.at, "data": entry.data.hex()}


def rate(count: int, action: Callable[[], object]) -> float:
    """Readings a second."""
    begun = time.perf_counter()
    action()
    return count / (time.perf_counter() - begun)


SUBJECTS = {"Covey's buffer": covey, "SQLite, one INSERT each": plain_sqlite, "JSON lines": json_lines}


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--readings", type=int, default=20_000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=None, help="on the disk to measure; default: the temporary folder")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found: dict[str, list[dict[str, float]]] = {name: [] for name in SUBJECTS}
    for _ in range(options.runs):
        for name, measure in SUBJECTS.items():
            with tempfile.TemporaryDirectory(prefix="covey-buffer-", dir=options.folder) as folder:
                found[name].append(measure(Path(folder), options.readings))
    rows = {name: {key: statistics.median(run[key] for run in runs) for key in runs[0]} for name, runs in found.items()}
    if options.json:
        print(json.dumps(rows, indent=2))
        return 0
    print(f"{'':<26} {'written /s':>12} {'synced /s':>10} {'drained /s':>12} {'bytes each':>11}")
    for name, row in rows.items():
        figures = f"{row['write_a_second']:>12,.0f} {row['synced_a_second']:>10,.0f} {row['drain_a_second']:>12,.0f}"
        print(f"{name:<26} {figures} {row['bytes_a_reading']:>11,.0f}")
    ours, plain = rows["Covey's buffer"], rows["SQLite, one INSERT each"]
    ratios = {name: ours[name] / plain[name] for name in ours}
    print(f"against one INSERT each: written {ratios['write_a_second']:.0f} x, drained {ratios['drain_a_second']:.1f} x, ", end="")
    print(f"bytes {ratios['bytes_a_reading']:.3f} x")
    return 0


if __name__ == "__main__":
    sys.exit(main())
