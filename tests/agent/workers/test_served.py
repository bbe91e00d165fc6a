"""Back-pressure: a model that is too slow for its callers costs them a clear answer, and the device no memory."""

import json
import threading
from pathlib import Path

import numpy as np
import pytest
from tests.fakes.tiny_releases import make_release, make_variant

from covey_agent.workers import localapi
from covey_agent.workers.errors import ModelError
from covey_agent.workers.http import HttpProblemError, Request, Response
from covey_agent.workers.localapi import LocalApi
from covey_agent.workers.runtimes.engine import Tensor, VariantModel
from covey_agent.workers.served import ServedModel
from covey_agent.workers.slotmodel import SlotContent
from covey_agent.workers.stage import SlotFile
from covey_agent.workers.window import Window

VARIANT = make_variant(b"x")
ONE = np.zeros((1, 2), np.float32)


class SlowEngine:
    """Answers when it is let, and may fail."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.entered = threading.Semaphore(0)
        self.error: ModelError | None = None

    def invoke(self, tensor: Tensor) -> Tensor:
        self.entered.release()
        assert self.go.wait(5)
        if self.error is not None:
            raise self.error
        return tensor


def served(engine: SlowEngine, window: Window, *, max_waiting: int = 2, patience_s: float = 5.0) -> ServedModel:
    model = VariantModel(engine, VARIANT.input, VARIANT.output)
    return ServedModel(model, ["no", "yes"], window, max_waiting=max_waiting, patience_s=patience_s)


def in_threads(model: ServedModel, count: int) -> list[threading.Thread]:
    threads = [threading.Thread(target=model.infer, args=(ONE,)) for _ in range(count)]
    for thread in threads:
        thread.start()
    return threads


def test_only_so_many_wait() -> None:
    engine, window = SlowEngine(), Window()
    model = served(engine, window)
    threads = in_threads(model, 3)  # one runs, two wait
    assert engine.entered.acquire(timeout=5)
    while model.waiting < 3:
        threading.Event().wait(0.001)
    with pytest.raises(HttpProblemError) as caught:
        model.infer(ONE)
    assert (caught.value.status, caught.value.headers) == (503, (("Retry-After", "1"),))
    engine.go.set()
    for thread in threads:
        thread.join(5)
    assert model.infer(ONE).labels == ["no"]
    assert window.take().requests == 4


def test_nobody_waits_for_ever() -> None:
    engine = SlowEngine()
    model = served(engine, Window(), patience_s=0.01)
    threads = in_threads(model, 1)
    assert engine.entered.acquire(timeout=5)
    with pytest.raises(HttpProblemError) as caught:
        model.infer(ONE)
    assert caught.value.status == 503
    engine.go.set()
    threads[0].join(5)
    assert model.waiting == 0


def test_a_model_that_raises_is_counted_and_the_next_request_gets_its_turn() -> None:
    engine, window = SlowEngine(), Window()
    engine.go.set()
    engine.error = ModelError("out of luck")
    model = served(engine, window)
    with pytest.raises(HttpProblemError) as caught:
        model.infer(ONE)
    assert (caught.value.status, caught.value.detail) == (500, "the model failed: out of luck")
    engine.error = None
    assert model.infer(ONE).labels == ["no"]
    counted = window.take()
    assert (counted.requests, counted.errors) == (2, 1)


# -- memory for bodies -------------------------------------------------------------------------------------------------


def api(window: Window) -> LocalApi:
    engine = SlowEngine()
    engine.go.set()
    release = make_release([VARIANT], inputs=ONE, outputs=ONE)
    slot = SlotFile("tiny", 1, "0" * 64, VARIANT.name, VARIANT.artifact, "")
    return LocalApi(SlotContent(slot, release, VARIANT, Path("unused")), served(engine, window), window, slot="A")


def ask(subject: LocalApi, body: bytes, *, length: int | None = None) -> tuple[Response, bool]:
    """The response, and whether the body was read."""
    read: list[bool] = []

    def read_body() -> bytearray:
        read.append(True)
        return bytearray(body)

    request = Request("POST", "/v1/infer", {}, len(body) if length is None else length, True)
    return subject.handle(request, read_body), bool(read)


def test_a_body_that_is_too_long_is_not_read() -> None:
    window = Window()
    response, was_read = ask(api(window), b"", length=localapi.MAX_JSON_BYTES + 1)
    assert (response.status, response.close, was_read) == (413, True, False)
    assert window.take().rejected == 1


def test_bodies_together_stay_within_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(localapi, "MAX_BODIES_BYTES", 1600)  # a JSON body of 100 bytes
    subject = api(Window())
    inner: list[Response] = []
    body = b'{"inputs": [1, 2]}'

    def read_body() -> bytearray:
        inner.append(ask(subject, body, length=51)[0])  # another one arrives meanwhile
        return bytearray(body)

    outer = subject.handle(Request("POST", "/v1/infer", {}, 50, True), read_body)
    assert (outer.status, inner[0].status, inner[0].close) == (200, 503, True)
    assert ask(subject, body, length=100)[0].status == 200  # what was reserved is given back


def test_a_failed_request_gives_its_memory_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(localapi, "MAX_BODIES_BYTES", 1600)
    subject = api(Window())
    for _ in range(10):
        assert ask(subject, b"nonsense", length=100)[0].status == 400

        def cut() -> bytearray:
            raise ConnectionError("the peer left")

        with pytest.raises(ConnectionError):
            subject.handle(Request("POST", "/v1/infer", {}, 100, True), cut)
    response, _ = ask(subject, b'{"inputs": [1, 2]}')
    assert json.loads(response.body)["outputs"] == [1.0, 2.0]
