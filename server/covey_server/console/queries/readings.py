"""A device's readings as charts: at most ~150 points a chart, however many readings there are.

The window ends at the newest reading, not at the present, so that a device that was silent for a week (or an example database)
still shows what was last known; the page says how old that is.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise
from math import isfinite
from statistics import median
from typing import Any

from sqlmodel import Session, col, select

from covey_server.console.queries.charts import Chart, Series, chart, line
from covey_server.telemetry.models import ReadingRow

RANGES = {"15m": timedelta(minutes=15), "1h": timedelta(hours=1), "24h": timedelta(days=1), "7d": timedelta(days=7)}
_MAX_ROWS = 20_000
_POINTS = 150
_CLASSES = 12  # a stack with more layers cannot be read
_CLASS = "class_"
_OTHER = "other"  # what a device with very many classes has added up itself


@dataclass(frozen=True, slots=True)
class DeviceCharts:
    """All charts of one device."""

    newest_at: datetime | None
    charts: dict[str, Chart]


Rows = Sequence[ReadingRow]
Fold = Callable[[Iterable[float]], float]


def get_device_charts(session: Session, device_id: str, *, window: timedelta) -> DeviceCharts:
    """Charts over the last `window` that holds readings."""
    infer = _rows(session, device_id, "infer", window)
    system = _rows(session, device_id, "system", window)
    newest = max((row.at for row in (*infer, *system)), default=None)
    return DeviceCharts(newest, {**_infer_charts(infer), **_system_charts(system)})


def _rows(session: Session, device_id: str, kind: str, window: timedelta) -> Rows:
    of_kind = select(ReadingRow).where(ReadingRow.device_id == device_id, ReadingRow.kind == kind)
    newest = session.exec(of_kind.order_by(col(ReadingRow.at).desc()).limit(1)).first()
    if newest is None:
        return ()
    query = of_kind.where(col(ReadingRow.at) > newest.at - window).order_by(col(ReadingRow.at).desc()).limit(_MAX_ROWS)
    return tuple(reversed(session.exec(query).all()))


def _infer_charts(rows: Rows) -> dict[str, Chart]:
    buckets = _buckets(rows)
    x = [at for at, _ in buckets]
    lengths = _seconds(rows)
    served = [[row for row in group if _value(row, "requests")] for _, group in buckets]  # an idle window has no latency
    return {
        "latency": chart(x, [_over("p50", served, "p50_ms", _mean), _over("p95", served, "p95_ms", max)], unit="ms"),
        "throughput": chart(x, [line("inputs", [_rate(group, lengths) for _, group in buckets])], unit="/s"),
        "confidence": chart(x, [_over("mean confidence", served, "mean_confidence", _mean)], unit="", from_zero=False),
        "errors": chart(x, [_over("errors", [group for _, group in buckets], "errors", sum)], unit=""),
        "classes": chart(x, _class_mix(served), unit="%", kind="stack"),
    }


def _system_charts(rows: Rows) -> dict[str, Chart]:
    buckets = _buckets(rows)
    x = [at for at, _ in buckets]
    groups = [group for _, group in buckets]
    mega = 1024.0 * 1024.0
    return {
        "cpu": chart(x, [_over("CPU", groups, "cpu_percent", _mean)], unit="%"),
        "memory": chart(
            x,
            [_over("agent", groups, "rss_bytes", _mean, scale=1 / mega), _over("in use", groups, "memory_bytes", _mean, scale=1 / mega)],
            unit="MB",
        ),
        "temperature": chart(x, [_over("temperature", groups, "temperature_c", max)], unit="°C", from_zero=False),
    }


def _buckets(rows: Rows) -> list[tuple[float, list[ReadingRow]]]:
    if not rows:
        return []
    first = rows[0].at.timestamp()
    width = max(1.0, (rows[-1].at.timestamp() - first) / _POINTS)
    groups: dict[int, list[ReadingRow]] = {}
    for row in rows:
        groups.setdefault(int((row.at.timestamp() - first) / width), []).append(row)
    return [(round(first + (place + 0.5) * width, 1), group) for place, group in sorted(groups.items())]


def _seconds(rows: Rows) -> dict[int | None, float]:
    """How long the window of each reading was, by row id: the time since the one before, or the usual one after a silence."""
    gaps = [(after.at - before.at).total_seconds() for before, after in pairwise(rows)]
    usual = median(gaps) if gaps else 1.0
    told = {after.id: gap if gap <= 3 * usual else usual for (_, after), gap in zip(pairwise(rows), gaps, strict=True)}
    return {row.id: max(told.get(row.id, usual), 0.001) for row in rows}


def _over(label: str, groups: list[list[ReadingRow]], name: str, fold: Fold, *, scale: float = 1.0) -> Series:
    values: list[float | None] = []
    for group in groups:
        found = [value for row in group if (value := _value(row, name)) is not None]
        values.append(round(fold(found) * scale, 3) if found else None)
    return line(label, values)


def _class_mix(groups: list[list[ReadingRow]]) -> list[Series]:
    counts = [_class_counts(group) for group in groups]
    totals: dict[str, float] = {}
    for found in counts:
        for label, count in found.items():
            totals[label] = totals.get(label, 0.0) + count
    named = [label for label in totals if label != _OTHER]
    largest = sorted(named, key=lambda label: -totals[label])[:_CLASSES]
    series = [line(label, [_share(found.get(label, 0.0), found) for found in counts]) for label in sorted(largest)]
    if len(totals) > len(largest):
        rest = set(totals) - set(largest)
        series.append(line("others", [_share(sum(found.get(label, 0.0) for label in rest), found) for found in counts]))
    return series


def _class_counts(group: list[ReadingRow]) -> dict[str, float]:
    counts: dict[str, float] = {}
    for row in group:
        for name in row.values:
            value = _value(row, name) if name.startswith(_CLASS) else None
            if value is not None:
                counts[name.removeprefix(_CLASS)] = counts.get(name.removeprefix(_CLASS), 0.0) + value
    return counts


def _share(part: float, whole: dict[str, float]) -> float | None:
    total = sum(whole.values())
    return round(100 * part / total, 2) if total else None


def _rate(group: list[ReadingRow], lengths: dict[int | None, float]) -> float:
    return round(sum(_value(row, "inputs") or 0.0 for row in group) / sum(lengths[row.id] for row in group), 3)


def _mean(values: Iterable[float]) -> float:
    told = list(values)
    return sum(told) / len(told)


def _value(row: ReadingRow, name: str) -> float | None:
    value: Any = row.values.get(name)
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)
    return float(value) if is_number else None
