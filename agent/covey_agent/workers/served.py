"""The model that is served: one request at a time, a bounded queue before it, and an eye on what comes out."""

import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from covey_agent.workers.answers import ConstantRun, classify
from covey_agent.workers.errors import ModelError
from covey_agent.workers.http import HttpProblemError
from covey_agent.workers.runtimes.engine import Floats, VariantModel
from covey_agent.workers.tensors import is_finite
from covey_agent.workers.window import Window

_REMEMBERED_ANSWERS = 1024  # feedback may name one of the newest so many requests


@dataclass(frozen=True, slots=True)
class Answer:
    """Of one request."""

    id: str
    outputs: Floats
    labels: list[str]  # empty for a model without labels
    confidences: list[float]


class ServedModel:
    """Runs the model and counts. For any thread."""

    def __init__(self, model: VariantModel, labels: list[str], window: Window, *, max_waiting: int = 16, patience_s: float = 10.0) -> None:
        """At most `max_waiting` requests wait, each at most `patience_s`; more would only grow memory and everybody's latency."""
        self._model = model
        self._labels = labels
        self._window = window
        self._max_waiting = max_waiting
        self._patience_s = patience_s
        self._lock = threading.Lock()
        self._waiting = 0
        self._waiting_lock = threading.Lock()
        self._constant = ConstantRun()
        self._answers: OrderedDict[str, list[str]] = OrderedDict()
        self._prefix = secrets.token_hex(4)  # ids of two workers of one device never meet
        self._count = 0
        self._began: float | None = None

    @property
    def busy_s(self) -> float:
        """How long the model has been at its present request, seconds; 0 if it has none."""
        began = self._began
        return 0.0 if began is None else time.perf_counter() - began

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Of one input."""
        return self._model.sample_shape

    @property
    def waiting(self) -> int:
        """Requests that wait for the model or have it."""
        return self._waiting

    def infer(self, batch: Floats) -> Answer:
        """Answer one request. Raises HttpProblemError: 503 when too many wait, 500 by the model's fault."""
        with self._turn():
            start = self._began = time.perf_counter()
            try:
                outputs = self._model.run(batch)
            except ModelError as exc:
                self._window.failed(out_of_memory=exc.out_of_memory)
                raise HttpProblemError(500, f"the model failed: {exc}") from exc
            finally:
                self._began = None
            if not is_finite(outputs):
                self._window.failed(nonfinite=True)
                raise HttpProblemError(500, "the model answered NaN or infinity")
            labels, confidences = classify(outputs, self._labels)
            run = self._constant.see(batch, outputs)
            answer = Answer(self._remember(labels), outputs, labels, confidences)
            latency_ms = (time.perf_counter() - start) * 1000
        self._window.answered(labels, confidences, inputs=len(batch), latency_ms=latency_ms, constant_run=run)
        return answer

    def learn_truth(self, request_id: str | None, truth: list[str]) -> int:
        """Compare true labels with an answer's (the newest one's if no id is given); return how many were right."""
        with self._lock:
            known = request_id or next(reversed(self._answers), "")
            answered = self._answers.get(known)
        if answered is None:
            raise HttpProblemError(404, f"no answer {known or 'yet'} is remembered; the newest {_REMEMBERED_ANSWERS} of this model are")
        if len(truth) != len(answered):
            raise HttpProblemError(422, f"answer {known} has {len(answered)} labels, {len(truth)} came")
        unknown = sorted(set(truth) - set(self._labels))
        if unknown:
            raise HttpProblemError(422, f"this model has no label {unknown[0]!r:.80}", {"expected": {"labels": self._labels}})
        correct = sum(label == true for label, true in zip(answered, truth, strict=True))
        self._window.labelled(correct=correct, count=len(truth))
        return correct

    @contextmanager
    def _turn(self) -> Iterator[None]:
        with self._waiting_lock:
            if self._waiting > self._max_waiting:
                raise _busy(f"{self._waiting} requests are waiting for the model")
            self._waiting += 1
        try:
            if not self._lock.acquire(timeout=self._patience_s):
                raise _busy(f"the model was busy for {self._patience_s:.0f} s")
            try:
                yield
            finally:
                self._lock.release()
        finally:
            with self._waiting_lock:
                self._waiting -= 1

    def _remember(self, labels: list[str]) -> str:
        self._count += 1
        answer_id = f"{self._prefix}-{self._count}"
        self._answers[answer_id] = labels
        if len(self._answers) > _REMEMBERED_ANSWERS:
            self._answers.popitem(last=False)
        return answer_id


def _busy(detail: str) -> HttpProblemError:
    return HttpProblemError(503, detail, headers=(("Retry-After", "1"),))
