"""The local API: what an application on the device may ask. See docs/local-api.md.

POST /v1/infer     GET /v1/model     GET /v1/health     POST /v1/feedback
"""

import threading
import time
from collections.abc import Callable
from typing import Any

import msgspec

from covey_agent.workers.http import HttpProblemError, Request, Response
from covey_agent.workers.served import Answer, ServedModel
from covey_agent.workers.slotmodel import SlotContent
from covey_agent.workers.tensors import RAW, SHAPE_HEADER, read_json, read_raw
from covey_agent.workers.window import Window

ReadBody = Callable[[], bytearray]

COMPACT = "application/x-covey-answer"  # a line of JSON with the outputs' shape, then the outputs as little-endian float32
MAX_RAW_BYTES = 16 * 1024 * 1024
MAX_JSON_BYTES = 4 * 1024 * 1024
MAX_BODIES_BYTES = 64 * 1024 * 1024  # of memory for all bodies at once
_JSON_COST = 16  # a number takes four bytes of text and, once parsed, some sixty of memory
_encode = msgspec.json.Encoder().encode


class Feedback(msgspec.Struct, forbid_unknown_fields=True):
    """The body of POST /v1/feedback: the true label, or labels for a batch."""

    label: str | list[str]
    id: str | None = None


class LocalApi:
    """Routes requests to the served model. For any thread."""

    def __init__(self, content: SlotContent, served: ServedModel, window: Window, *, slot: str) -> None:
        self._served = served
        self._window = window
        self._budget = MAX_BODIES_BYTES
        self._budget_lock = threading.Lock()
        self._started = time.monotonic()
        release, variant = content.release, content.variant
        self._identity = {"model": release.model, "version": release.version, "variant": variant.name, "slot": slot}
        self._model_card = _encode(
            self._identity
            | {
                "runtime": variant.needs.runtime.value,
                "provider": content.slot.provider,
                "precision": variant.precision,
                "artifact": variant.artifact,
                "manifest": content.slot.manifest,
                "chosen_because": content.slot.reason,
                "labels": release.labels,
                "input": {"shape": [-1, *variant.input.shape[1:]], "dtype": "float32"},
                "output": {"shape": [-1, *variant.output.shape[1:]], "dtype": "float32"},
            }
        )

    def handle(self, request: Request, read_body: ReadBody) -> Response:
        """Answer one request; problems become responses here."""
        try:
            return self._route(request, read_body)
        except HttpProblemError as problem:
            if problem.status != 500:  # counted as an error where it was raised
                self._window.rejected()
            return problem.to_response()

    def _route(self, request: Request, read_body: ReadBody) -> Response:
        match request.method, request.path:
            case "POST", "/v1/infer":
                return self._infer(request, read_body)
            case "POST", "/v1/feedback":
                return self._feedback(request, read_body)
            case "GET", "/v1/model":
                return _reply(request, self._model_card)
            case "GET", "/v1/health":
                health = {"status": "serving", "uptime_s": round(time.monotonic() - self._started, 3)}
                return _reply(request, _encode(self._identity | health | {"requests": self._window.total_requests}))
            case _, "/v1/infer" | "/v1/feedback" | "/v1/model" | "/v1/health":
                allowed = "POST" if request.path in ("/v1/infer", "/v1/feedback") else "GET"
                raise HttpProblemError(405, f"{request.path} takes {allowed}", headers=(("Allow", allowed),), close=request.length > 0)
            case _:
                raise HttpProblemError(404, f"there is no {request.path:.100}", close=request.length > 0)

    def _infer(self, request: Request, read_body: ReadBody) -> Response:
        raw = request.headers.get("content-type", "").partition(";")[0].strip().lower() == RAW
        limit, cost = (MAX_RAW_BYTES, request.length) if raw else (MAX_JSON_BYTES, request.length * _JSON_COST)
        if request.length > limit:
            hint = "" if raw else f"; as {RAW} it may have {MAX_RAW_BYTES}"
            raise HttpProblemError(413, f"the body has {request.length} bytes, at most {limit} are read{hint}", close=True)
        self._reserve(cost)
        try:
            body = read_body()
            shape = self._served.sample_shape
            batch, single = read_raw(body, request.headers.get(SHAPE_HEADER), shape) if raw else read_json(body, shape)
            answer = self._served.infer(batch)
        finally:
            self._reserve(-cost)
        said = _say(answer, single=single) | self._identity
        outputs = answer.outputs[0] if single else answer.outputs
        if request.headers.get("accept") == COMPACT:
            # Numbers as text cost a client more than a small model costs the device.
            line = _encode(said | {"shape": outputs.shape})
            return Response(200, line + b"\n" + outputs.astype("<f4", copy=False).tobytes(), COMPACT)
        return Response(200, _encode(said | {"outputs": outputs.tolist()}))

    def _feedback(self, request: Request, read_body: ReadBody) -> Response:
        if request.length > MAX_JSON_BYTES // 64:
            raise HttpProblemError(413, f"at most {MAX_JSON_BYTES // 64} bytes are read", close=True)
        try:
            feedback = msgspec.json.decode(read_body(), type=Feedback)
        except (msgspec.DecodeError, UnicodeDecodeError) as exc:
            raise HttpProblemError(400, f'expected a JSON object {{"label": "...", "id": "..."}}: {exc}') from exc
        truth = [feedback.label] if isinstance(feedback.label, str) else feedback.label
        correct = self._served.learn_truth(feedback.id, truth)
        return Response(200, _encode({"labelled": len(truth), "correct": correct}))

    def _reserve(self, cost: int) -> None:
        with self._budget_lock:
            if cost > self._budget:
                raise HttpProblemError(503, "too many large requests at once", headers=(("Retry-After", "1"),), close=True)
            self._budget -= cost


def _say(answer: Answer, *, single: bool) -> dict[str, Any]:
    if not answer.labels:
        return {"id": answer.id, "label": None, "confidence": None}
    if single:
        return {"id": answer.id, "label": answer.labels[0], "confidence": answer.confidences[0]}
    return {"id": answer.id, "label": answer.labels, "confidence": answer.confidences}


def _reply(request: Request, body: bytes) -> Response:
    # A GET with a body is allowed but pointless; it is not read, so nothing else can be read after it.
    return Response(200, body, close=request.length > 0)
