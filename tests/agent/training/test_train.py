"""The train child's end of the line to the agent: decisions are waited for, and the agent's end is the end."""

import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, cast

import msgspec
import pytest

from covey_agent.core.jobs import AskRound, Order, RoundDecision
from covey_agent.workers.errors import RefusedError
from covey_agent.workers.lines import Lines
from covey_agent.workers.train import Agent
from covey_contract.messages import PrivacyPlan

PLAN = PrivacyPlan(level="record", noise_multiplier=1.0, clipping_norm=1.0, sample_rate=0.5, steps=1, delta=1e-3)
QUESTION = AskRound(run="r1", round=2, dataset="points", plan=PLAN)


@dataclass
class Line:
    """Both ends of the two pipes between agent and child."""

    agent: Agent
    stop: threading.Event
    orders: BinaryIO
    events: BinaryIO

    def say(self, order: Order) -> None:
        self.orders.write(msgspec.json.encode(order) + b"\n")
        self.orders.flush()


@pytest.fixture
def line() -> Iterator[Line]:
    order_read, order_write = os.pipe()
    event_read, event_write = os.pipe()
    with (
        os.fdopen(order_read, "rb", buffering=0) as incoming,
        os.fdopen(order_write, "wb") as orders,
        os.fdopen(event_read, "rb") as events,
        os.fdopen(event_write, "wb") as outgoing,
    ):
        stop = threading.Event()
        yield Line(Agent(Lines(cast(BinaryIO, incoming), outgoing), stop), stop, orders, events)
        orders.close()  # the reading thread ends before its file is closed
        assert stop.wait(5)


def decision(number: int, *, allowed: bool = True) -> RoundDecision:
    return RoundDecision(run="r1", round=number, allowed=allowed, reason="", epsilon=1.0)


def test_it_asks_and_takes_the_decision_about_this_round_only(line: Line) -> None:
    line.say(decision(1))
    line.say(decision(2, allowed=False))
    assert line.agent.ask(QUESTION) == decision(2, allowed=False)
    assert msgspec.json.decode(line.events.readline(), type=AskRound) == QUESTION


def test_an_agent_that_goes_away_is_a_no(line: Line) -> None:
    line.orders.close()
    with pytest.raises(RefusedError, match="before it decided"):
        line.agent.ask(QUESTION)
    assert line.stop.is_set()
