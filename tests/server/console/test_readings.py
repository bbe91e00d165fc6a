"""A device's charts: true to the readings, however many, late or oddly shaped they are."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.fakes.console_app import open_database

from covey_server.console.queries.charts import Chart
from covey_server.console.queries.readings import get_device_charts
from covey_server.db import Database
from covey_server.telemetry.models import ReadingRow

START = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
HOUR = timedelta(hours=1)


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Database]:
    db = open_database(tmp_path)
    yield db
    db.close()


def store(db: Database, seconds: list[float], values: list[dict[str, Any]], kind: str = "infer") -> None:
    with db.begin() as session:
        for sequence, (second, each) in enumerate(zip(seconds, values, strict=True)):
            at = START + timedelta(seconds=second)
            session.add(ReadingRow(device_id="d", epoch=kind, sequence=sequence, at=at, kind=kind, values=each))


def charts(db: Database, window: timedelta = HOUR) -> dict[str, Chart]:
    with db.read() as session:
        return get_device_charts(session, "d", window=window).charts


def values(chart: Chart, label: str) -> list[float | None]:
    return next(one["values"] for one in chart["series"] if one["label"] == label)


def test_throughput_is_inputs_over_the_time_they_took(db: Database) -> None:
    store(db, [0, 10, 20, 30], [{"requests": 1, "inputs": 50}] * 4)
    assert values(charts(db)["throughput"], "inputs") == [5.0] * 4


def test_a_silence_does_not_thin_out_the_throughput_after_it(db: Database) -> None:
    store(db, [0, 10, 20, 1020, 1030], [{"requests": 1, "inputs": 50}] * 5)
    assert set(values(charts(db)["throughput"], "inputs")) == {5.0}


def test_many_readings_become_few_points_and_keep_their_sum(db: Database) -> None:
    store(db, [float(second) for second in range(900)], [{"requests": 1, "errors": 1}] * 900)
    chart = charts(db)["errors"]
    assert len(chart["x"]) <= 151
    assert sum(value or 0 for value in values(chart, "errors")) == 900


def test_a_peak_survives_the_summary(db: Database) -> None:
    store(db, [float(second) for second in range(900)], [{"requests": 1, "p95_ms": 900 if second == 450 else 3} for second in range(900)])
    assert max(value or 0 for value in values(charts(db)["latency"], "p95")) == 900


def test_a_window_without_requests_has_no_latency(db: Database) -> None:
    store(db, [0, 10], [{"requests": 4, "p50_ms": 2.0}, {"requests": 0, "p50_ms": 0.0}])
    assert values(charts(db)["latency"], "p50") == [2.0, None]


def test_the_class_mix_adds_up_to_everything(db: Database) -> None:
    counts = {f"class_{label}": label for label in range(20)}
    store(db, [0, 10], [{"requests": 1, **counts}] * 2)
    chart = charts(db)["classes"]
    assert [one["label"] for one in chart["series"]][-1] == "others"
    assert sum(one["values"][0] or 0 for one in chart["series"]) == pytest.approx(100, abs=0.1)


def test_the_window_ends_at_the_newest_reading(db: Database) -> None:
    store(db, [0, 7200], [{"requests": 1, "inputs": 1}] * 2)
    assert len(charts(db)["throughput"]["x"]) == 1
    assert len(charts(db, timedelta(days=1))["throughput"]["x"]) == 2


def test_values_that_are_no_numbers_are_left_out(db: Database) -> None:
    store(db, [0, 10, 20], [{"cpu_percent": "hot"}, {"cpu_percent": 12.5}, {"cpu_percent": float("nan")}], kind="system")
    assert values(charts(db)["cpu"], "CPU") == [None, 12.5, None]


def test_a_device_without_readings_has_empty_charts(db: Database) -> None:
    assert all(not chart["series"] for chart in charts(db).values())
