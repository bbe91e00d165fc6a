"""What the inference worker tells the agent once a window: counted here, judged by the agent. No I/O, no clock."""

import threading
from collections import Counter, deque
from dataclasses import dataclass, field

from covey_agent.core.jobs import InferWindow
from covey_agent.core.latencies import count_latencies

_MAX_LATENCIES = 4096  # of the newest requests in a window: memory stays bounded at any rate


@dataclass(slots=True)
class _Counts:
    requests: int = 0
    inputs: int = 0
    errors: int = 0
    rejected: int = 0
    nonfinite: int = 0
    out_of_memory: int = 0
    constant_run: int = 0
    labelled: int = 0
    labelled_correct: int = 0
    confidence: float = 0.0
    confidences: int = 0
    classes: Counter[str] = field(default_factory=Counter)
    latencies: deque[float] = field(default_factory=lambda: deque(maxlen=_MAX_LATENCIES))


class Window:
    """Counters since the last `take`. For any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts = _Counts()
        self.total_requests = 0

    def answered(self, labels: list[str], confidences: list[float], *, inputs: int, latency_ms: float, constant_run: int) -> None:
        """A request was answered; `labels` is empty for a model without labels."""
        with self._lock:
            counts = self._counts
            self.total_requests += 1
            counts.requests += 1
            counts.inputs += inputs
            counts.latencies.append(latency_ms)
            counts.constant_run = max(counts.constant_run, constant_run)
            counts.confidence += sum(confidences)
            counts.confidences += len(confidences)
            counts.classes.update(labels)

    def failed(self, *, nonfinite: bool = False, out_of_memory: bool = False) -> None:
        """A good request was not answered, by the model's fault."""
        with self._lock:
            self.total_requests += 1
            self._counts.requests += 1
            self._counts.errors += 1
            self._counts.nonfinite += nonfinite
            self._counts.out_of_memory += out_of_memory

    def rejected(self) -> None:
        """A request was not answered, by the client's fault or because too many came at once."""
        with self._lock:
            self._counts.rejected += 1

    def labelled(self, *, correct: int, count: int) -> None:
        """Feedback told the true labels of `count` answers."""
        with self._lock:
            self._counts.labelled += count
            self._counts.labelled_correct += correct

    def take(self, *, busy_s: float = 0.0) -> InferWindow:
        """What happened since the last call; `busy_s` is how long the model has been at its present request."""
        with self._lock:
            counts, self._counts = self._counts, _Counts()
        latencies = sorted(counts.latencies)
        return InferWindow(
            requests=counts.requests,
            inputs=counts.inputs,
            errors=counts.errors,
            rejected=counts.rejected,
            p50_ms=percentile(latencies, 0.50),
            p95_ms=percentile(latencies, 0.95),
            mean_confidence=counts.confidence / counts.confidences if counts.confidences else 0.0,
            classes=dict(counts.classes),
            nonfinite=counts.nonfinite,
            out_of_memory=counts.out_of_memory,
            latencies=count_latencies(latencies),
            busy_s=busy_s,
            constant_run=counts.constant_run,
            labelled=counts.labelled,
            labelled_correct=counts.labelled_correct,
        )


def percentile(ordered: list[float], share: float) -> float:
    """The nearest-rank percentile of sorted numbers, 0 if there are none."""
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)] if ordered else 0.0
