"""Meters: what workers saw and how the machine is, as readings at fixed intervals."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from covey_agent.core.jobs import InferWindow
from covey_agent.daemon.kit import Kit
from covey_agent.daemon.readings import Readings
from covey_contract.messages import Scalar

MAX_CLASSES = 40  # the rarest beyond are summed up as class_other: a reading holds 64 values


@dataclass(frozen=True, slots=True)
class Tally:
    """Windows added up."""

    requests: int = 0
    inputs: int = 0
    errors: int = 0
    rejected: int = 0
    nonfinite: int = 0
    labelled: int = 0
    labelled_correct: int = 0
    p50_weight: float = 0.0  # sum of p50_ms * requests
    p95_ms: float = 0.0  # the worst window's
    confidence_weight: float = 0.0  # sum of mean_confidence * inputs
    classes: Mapping[str, int] = field(default_factory=dict)


def add_window(tally: Tally, window: InferWindow) -> Tally:
    """`tally` and one more window."""
    classes = dict(tally.classes)
    for label, count in window.classes.items():
        classes[label] = classes.get(label, 0) + count
    return replace(
        tally,
        requests=tally.requests + window.requests,
        inputs=tally.inputs + window.inputs,
        errors=tally.errors + window.errors,
        rejected=tally.rejected + window.rejected,
        nonfinite=tally.nonfinite + window.nonfinite,
        labelled=tally.labelled + window.labelled,
        labelled_correct=tally.labelled_correct + window.labelled_correct,
        p50_weight=tally.p50_weight + window.p50_ms * window.requests,
        p95_ms=max(tally.p95_ms, window.p95_ms),
        confidence_weight=tally.confidence_weight + window.mean_confidence * window.inputs,
        classes=classes,
    )


def tally_values(tally: Tally) -> dict[str, Scalar]:
    """The values of one `infer` reading; empty if nothing happened."""
    if not (tally.requests or tally.rejected or tally.labelled):
        return {}
    values: dict[str, Scalar] = {
        "requests": tally.requests,
        "inputs": tally.inputs,
        "errors": tally.errors,
        "rejected": tally.rejected,
        "p50_ms": round(tally.p50_weight / max(1, tally.requests), 3),
        "p95_ms": round(tally.p95_ms, 3),
        "mean_confidence": round(tally.confidence_weight / max(1, tally.inputs), 4),
    }
    if tally.nonfinite:
        values["nonfinite"] = tally.nonfinite
    if tally.labelled:
        values |= {"labelled": tally.labelled, "labelled_correct": tally.labelled_correct}
    ranked = sorted(tally.classes.items(), key=lambda item: -item[1])
    values |= {f"class_{label}": count for label, count in ranked[:MAX_CLASSES]}
    other = sum(count for _, count in ranked[MAX_CLASSES:])
    if other:
        values["class_other"] = other
    return values


class Meter:
    """Adds up windows, reads the machine, and makes readings of both."""

    def __init__(self, kit: Kit, readings: Readings, *, read_system: Callable[[], dict[str, Scalar]]) -> None:
        self._kit = kit
        self._readings = readings
        self._read_system = read_system
        self._tally = Tally()
        self._about: dict[str, Scalar] = {}

    def begin(self) -> None:
        """Start the interval of the machine's health."""
        if self._kit.settings.readings.system_interval_s > 0:
            self._kit.timers.set("meter-system", self._kit.settings.readings.system_interval_s, self._measure_system)

    def window_came(self, window: InferWindow, *, model: str, version: int) -> None:
        """Add a window of the worker that serves this model."""
        about: dict[str, Scalar] = {"model": model, "version": version} if model else {}
        if about != self._about:
            self._close_interval()
            self._about = about
        self._tally = add_window(self._tally, window)
        self._kit.timers.set_once("meter-infer", self._kit.settings.readings.infer_interval_s, self._close_interval)

    def close(self) -> None:
        """The agent stops: what was counted so far becomes a reading."""
        self._close_interval()

    def _close_interval(self) -> None:
        self._kit.timers.cancel("meter-infer")
        values = tally_values(self._tally)
        self._tally = Tally()
        if values:
            self._readings.add("infer", {**self._about, **values})

    def _measure_system(self) -> None:
        values = self._read_system()
        if values:
            self._readings.add("system", values)
        self._kit.timers.set("meter-system", self._kit.settings.readings.system_interval_s, self._measure_system)
