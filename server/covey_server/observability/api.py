"""/healthz, /readyz and /metrics: for load balancers and Prometheus, without a token, with no secret in them."""

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from covey_server import migrate
from covey_server.api_deps import parts_of
from covey_server.observability import service
from covey_server.observability.models import Counter

router = APIRouter(tags=["health"])

_LABELS = {
    "covey_devices": "presence",
    "covey_rollouts": "state",
    "covey_releases": "state",
    "covey_mqtt_refused": "reason",
    "covey_mqtt_handled": "channel",
}


@router.get("/healthz", summary="Is the process alive?")
def healthz() -> dict[str, str]:
    """Answers as long as the API process runs."""
    return {"status": "ok"}


@router.get("/readyz", summary="Can it do its work?")
def readyz(request: Request) -> JSONResponse:
    """200 when the database has the newest schema and the worker beats; else 503 with what is missing."""
    parts = parts_of(request)
    checks = {"database": migrate.is_current(parts.db)}
    with parts.db.read() as session:
        checks["worker"] = service.is_alive(session, "worker", now=parts.clock())
    ready = all(checks.values())
    return JSONResponse({"status": "ready" if ready else "not ready", "checks": checks}, status_code=200 if ready else 503)


@router.get("/metrics", summary="Metrics for Prometheus", response_class=Response)
def metrics(request: Request) -> Response:
    """Gauges of the fleet and counters of the worker, in Prometheus' text form."""
    parts = parts_of(request)
    with parts.db.read() as session:
        families = [*_gauges(service.gauges(session)), *_counters(service.counters(session))]
    registry = CollectorRegistry()
    registry.register(_Families(families))
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)


class _Families:
    """Hands ready-made families to prometheus_client."""

    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> list[Metric]:
        return self._families


def _gauges(gauges: dict[str, dict[str, float]]) -> list[Metric]:
    families: list[Metric] = []
    for name, values in gauges.items():
        label = _LABELS.get(name)
        family = GaugeMetricFamily(name, name.removeprefix("covey_").replace("_", " "), labels=[label] if label else [])
        for value_label, value in values.items():
            family.add_metric([value_label] if label else [], value)
        families.append(family)
    return families


def _counters(rows: list[Counter]) -> list[Metric]:
    families: dict[str, CounterMetricFamily] = {}
    for row in rows:
        label = _LABELS.get(row.name, "label")
        family = families.setdefault(
            row.name, CounterMetricFamily(row.name, row.name.removeprefix("covey_").replace("_", " "), labels=[label])
        )
        family.add_metric([row.label], row.value)
    return list(families.values())
