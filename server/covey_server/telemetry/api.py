"""REST: readings of devices."""

from datetime import datetime, timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query
from pydantic import Field

from covey_server.access.guard import Viewer
from covey_server.api_deps import ApiView, Page, PageQuery, PartsDep, ReadSession, problems
from covey_server.devices import service as devices
from covey_server.errors import InvalidInputError
from covey_server.telemetry import series

router = APIRouter(prefix="/api/v1", tags=["readings"])
DevicePath = Annotated[str, Path(description="device id", max_length=200)]
Kind = Annotated[str | None, Query(max_length=64, description="infer, system, deployment, training or alarm")]


class ReadingView(ApiView):
    """One reading."""

    id: int
    epoch: str
    sequence: int
    at: datetime = Field(description="when it was made")
    received_at: datetime = Field(description="when it arrived")
    kind: str
    values: dict[str, Any]


class PointView(ApiView):
    """One part of a series."""

    at: datetime = Field(description="its begin")
    average: float
    minimum: float
    maximum: float
    count: int


class SeriesView(ApiView):
    """A value over time."""

    device: str
    kind: str
    value: str
    since: datetime
    until: datetime
    points: list[PointView] = Field(description="parts without readings are left out")


class LatestView(ApiView):
    """The newest reading of one kind."""

    kind: str
    at: datetime
    values: dict[str, Any]


class StreamView(ApiView):
    """How far one epoch of a device's readings is committed."""

    epoch: str
    upto: int = Field(description="last sequence number that was acknowledged")
    stored: int
    duplicates: int = Field(description="came again, stored once")
    lost: dict[str, int] = Field(description="dropped on the device because its buffer was full, by priority")
    updated_at: datetime


class DeviceReadingsView(ApiView):
    """What is known of a device's readings."""

    latest: list[LatestView]
    streams: list[StreamView]


class SummaryView(ApiView):
    """All devices' readings in numbers."""

    since: datetime
    until: datetime
    stored: int = Field(description="since the beginning")
    duplicates: int = Field(description="came again, stored once")
    lost: dict[str, int] = Field(description="dropped on devices because their buffers were full, by priority")
    streams: int
    by_kind: dict[str, int] = Field(description="readings within the window")
    requests: float = Field(description="inferences within the window")
    errors: float
    p50_ms: float | None = Field(description="median latency, mean over the window")
    p95_ms: float | None = Field(description="95th percentile, worst within the window")


@router.get("/devices/{device}/readings", summary="A device's readings", responses=problems(404, 422))
def list_readings(device: DevicePath, _: Viewer, session: ReadSession, page: PageQuery, kind: Kind = None) -> Page[ReadingView]:
    """Readings in the order of their arrival, newest first."""
    row = devices.get_device(session, device)
    rows = series.list_readings(session, row.id, kind=kind, before=page.before_id(), limit=page.limit + 1)
    return Page[ReadingView].cut([ReadingView.model_validate(reading) for reading in rows], page, key=lambda view: (view.id,))


@router.get("/devices/{device}/readings/latest", summary="A device's latest values", responses=problems(404, 422))
def latest_values(device: DevicePath, _: Viewer, session: ReadSession) -> DeviceReadingsView:
    """The newest reading of each kind, and how far the device's streams are committed."""
    row = devices.get_device(session, device)
    return DeviceReadingsView(
        latest=[LatestView.model_validate(latest) for latest in series.latest_values(session, row.id)],
        streams=[StreamView.model_validate(stream) for stream in series.list_streams(session, row.id)],
    )


@router.get("/devices/{device}/readings/series", summary="A value over time", responses=problems(404, 422))
def read_series(
    device: DevicePath,
    _: Viewer,
    session: ReadSession,
    parts: PartsDep,
    kind: Annotated[str, Query(max_length=64, examples=["infer"])],
    value: Annotated[str, Query(max_length=64, examples=["p50_ms"])],
    since: Annotated[datetime | None, Query(description="with its zone; default: an hour before `until`")] = None,
    until: Annotated[datetime | None, Query(description="with its zone; default: now")] = None,
    buckets: Annotated[int, Query(ge=1, le=series.MAX_BUCKETS)] = 200,
) -> SeriesView:
    """Average, minimum and maximum of one value in equal parts of a window."""
    row = devices.get_device(session, device)
    begin, end = _window(since, until, now=parts.clock())
    points = series.read_series(session, row.id, kind, value, since=begin, until=end, buckets=buckets)
    views = [PointView.model_validate(point) for point in points]
    return SeriesView(device=row.id, kind=kind, value=value, since=begin, until=end, points=views)


@router.get("/readings/summary", summary="The fleet's readings in numbers", responses=problems(422))
def summarize(
    _: Viewer,
    session: ReadSession,
    parts: PartsDep,
    since: Annotated[datetime | None, Query(description="with its zone; default: an hour before `until`")] = None,
    until: Annotated[datetime | None, Query(description="with its zone; default: now")] = None,
) -> SummaryView:
    """How much has arrived, how much came twice or was lost, and how inference does."""
    begin, end = _window(since, until, now=parts.clock())
    summary = series.summarize_fleet(session, since=begin, until=end)
    return SummaryView(since=begin, until=end, **{name: getattr(summary, name) for name in summary.__slots__})


def _window(since: datetime | None, until: datetime | None, *, now: datetime) -> tuple[datetime, datetime]:
    end = until or now + timedelta(seconds=1)  # the window's end is outside: what was made this moment must be in
    if end.tzinfo is None:
        raise InvalidInputError(f"times must carry their zone (2026-01-31T12:00:00Z), got {end.isoformat()}")
    return since or end - timedelta(hours=1), end
