"""Series, latest values and the fleet's numbers, through the API."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from tests.fakes.server_parts import START, TestParts, add_device, api_client, make_parts

from covey_contract.ids import DeviceId
from covey_contract.messages import Reading, ReadingBatch
from covey_server.clock import to_millis
from covey_server.telemetry import service

HOUR = {"since": "2026-01-15T11:00:00Z", "until": "2026-01-15T12:00:00Z"}


@pytest.fixture
def parts(tmp_path: Path) -> TestParts:
    parts = make_parts(tmp_path)
    with parts.db.begin() as session:
        for device in ("cam-1", "cam-2"):
            add_device(session, device)
    return parts


@pytest.fixture
def client(parts: TestParts) -> TestClient:
    return api_client(parts)


def store(parts: TestParts, device: str, minutes: list[float], kind: str, values: list[dict[str, Any]], *, lost: int = 0) -> None:
    """Readings of the hour before START, at the given minutes of it."""
    begin = START - timedelta(hours=1)
    readings = [Reading(to_millis(begin + timedelta(minutes=m)), kind, v) for m, v in zip(minutes, values, strict=True)]
    with parts.db.begin() as session:
        batch = ReadingBatch(f"e-{kind}", 0, readings, lost={"sample": lost} if lost else {})
        service.store_readings(session, DeviceId(device), batch, now=parts.clock())


def series(client: TestClient, **query: Any) -> list[dict[str, Any]]:
    answer = client.get("/api/v1/devices/cam-1/readings/series", params={"kind": "infer", "value": "p50_ms", **HOUR, **query})
    assert answer.status_code == 200, answer.text
    points: list[dict[str, Any]] = answer.json()["points"]
    return points


def test_a_series_is_averaged_in_equal_parts(parts: TestParts, client: TestClient) -> None:
    store(parts, "cam-1", [0, 10, 19.999, 20, 59.99], "infer", [{"p50_ms": v} for v in (1, 2.0, 6, 10, 4)])
    store(parts, "cam-2", [5], "infer", [{"p50_ms": 99}])
    store(parts, "cam-1", [5], "system", [{"p50_ms": 99}])
    found = [(p["at"], p["average"], p["minimum"], p["maximum"], p["count"]) for p in series(client, buckets=3)]
    assert found == [
        ("2026-01-15T11:00:00Z", 3.0, 1.0, 6.0, 3),
        ("2026-01-15T11:20:00Z", 10.0, 10.0, 10.0, 1),
        ("2026-01-15T11:40:00Z", 4.0, 4.0, 4.0, 1),
    ]


@pytest.mark.parametrize("buckets", [1, 8, 60, 240, 1000])
def test_a_reading_at_a_buckets_begin_belongs_to_it(parts: TestParts, client: TestClient, buckets: int) -> None:
    edges = [60.0 * index / buckets for index in range(min(buckets, 300))]
    store(parts, "cam-1", edges, "infer", [{"p50_ms": 1} for _ in edges])
    assert [point["count"] for point in series(client, buckets=buckets)] == [1] * len(edges)


def test_what_is_no_number_counts_as_absent(parts: TestParts, client: TestClient) -> None:
    store(parts, "cam-1", [1, 2, 3, 4], "infer", [{"p50_ms": "fast"}, {"other": 1}, {"p50_ms": float("nan")}, {"p50_ms": 2}])
    assert [(point["average"], point["count"]) for point in series(client, buckets=1)] == [(2.0, 1)]


def test_a_values_name_with_a_dot_or_dash_is_one_name(parts: TestParts, client: TestClient) -> None:
    store(parts, "cam-1", [1], "infer", [{"class_3.5-x": 7}])
    assert series(client, value="class_3.5-x")[0]["average"] == 7


@pytest.mark.parametrize(
    "query",
    [
        {"value": '"]'},
        {"value": "a'b"},
        {"value": "$.x"},
        {"value": ""},
        {"since": "2026-01-15T11:00:00"},
        {"until": "2026-01-15T12:00:00"},
        {"since": "2026-01-15T13:00:00Z"},
        {"since": "yesterday"},
        {"buckets": 0},
        {"buckets": 1001},
    ],
)
def test_faulty_questions_are_refused(client: TestClient, query: dict[str, Any]) -> None:
    answer = client.get("/api/v1/devices/cam-1/readings/series", params={"kind": "infer", "value": "p50_ms", **HOUR, **query})
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"


def test_the_latest_of_each_kind_and_the_streams_are_shown(parts: TestParts, client: TestClient) -> None:
    store(parts, "cam-1", [1, 3, 2], "infer", [{"p50_ms": 1}, {"p50_ms": 3}, {"p50_ms": 2}], lost=4)
    store(parts, "cam-1", [1], "system", [{"cpu_percent": 7}])
    body = client.get("/api/v1/devices/cam-1/readings/latest").json()
    assert [(entry["kind"], entry["values"]) for entry in body["latest"]] == [("infer", {"p50_ms": 3}), ("system", {"cpu_percent": 7})]
    assert {stream["epoch"]: (stream["upto"], stream["stored"], stream["lost"]) for stream in body["streams"]} == {
        "e-infer": (2, 3, {"sample": 4}),
        "e-system": (0, 1, {}),
    }


def test_single_readings_come_newest_first_in_pages(parts: TestParts, client: TestClient) -> None:
    store(parts, "cam-1", [1, 2, 3], "infer", [{"n": n} for n in range(3)])
    first = client.get("/api/v1/devices/cam-1/readings", params={"limit": 2}).json()
    second = client.get("/api/v1/devices/cam-1/readings", params={"limit": 2, "cursor": first["next"]}).json()
    assert [entry["values"]["n"] for entry in first["items"] + second["items"]] == [2, 1, 0]
    assert second["next"] is None


@pytest.mark.parametrize("path", ["readings", "readings/latest", "readings/series?kind=infer&value=p50_ms"])
def test_an_unknown_device_is_not_found(client: TestClient, path: str) -> None:
    assert client.get(f"/api/v1/devices/cam-9/{path}").status_code == 404


def test_the_fleet_in_numbers(parts: TestParts, client: TestClient) -> None:
    store(parts, "cam-1", [1, 2], "infer", [{"requests": 10, "errors": 1, "p50_ms": 2, "p95_ms": 5}, {"requests": 5, "p50_ms": 4}], lost=3)
    store(parts, "cam-2", [-300, 5], "infer", [{"requests": 100}, {"requests": 1, "p95_ms": 9}], lost=1)
    store(parts, "cam-2", [5], "system", [{"cpu_percent": 3}])
    body = client.get("/api/v1/readings/summary").json()
    assert (body["stored"], body["duplicates"], body["lost"], body["streams"]) == (5, 0, {"sample": 4}, 3)
    assert body["by_kind"] == {"infer": 3, "system": 1}
    assert (body["requests"], body["errors"], body["p50_ms"], body["p95_ms"]) == (16, 1, 3.0, 9.0)


def test_an_empty_fleet_has_numbers_too(client: TestClient) -> None:
    body = client.get("/api/v1/readings/summary").json()
    assert (body["stored"], body["by_kind"], body["p50_ms"]) == (0, {}, None)
