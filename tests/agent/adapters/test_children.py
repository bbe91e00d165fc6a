"""Real child processes that answer, print garbage, crash, hang and eat memory."""

import os
import queue
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from covey_agent.adapters.children import ProcessChildren
from covey_agent.core.jobs import BrokerAddress, ChildEvent, DeployJob, DeployRefused, FetchProgress
from covey_agent.inbox import ChildEnded, ChildSpoke, InboxEvent
from covey_agent.ports import Child
from covey_contract.messages import Capabilities

ROOT = Path(__file__).parents[3]
BROKER = BrokerAddress(host="h", port=1, ca_file="", cert_file="", key_file="", device="cam-1")


def job(behaviour: str, *, order: bytes = b"") -> DeployJob:
    return DeployJob(
        state_dir=f"/{behaviour}",
        broker=BROKER,
        order=order,
        slot_dir="",
        active_artifact="",
        capabilities=Capabilities(),
        quarantine=[],
        reserve_bytes=0,
    )


class Nest:
    """The adapter with its inbox."""

    def __init__(self) -> None:
        self.inbox: queue.SimpleQueue[InboxEvent] = queue.SimpleQueue()
        self.oom_kills = 7
        self.children = ProcessChildren(self.inbox.put, package="tests.fakes.agent_children", cwd=ROOT, oom_kills=lambda: self.oom_kills)

    def start(self, behaviour: str, *, order: bytes = b"", memory_limit: int = 0) -> Child:
        return self.children.start("deploy", job(behaviour, order=order), memory_limit=memory_limit)

    def next_event(self) -> ChildEvent:
        event = self.inbox.get(timeout=20)
        assert isinstance(event, ChildSpoke), event
        return event.event

    def end(self) -> ChildEnded:
        while True:
            event = self.inbox.get(timeout=20)
            if isinstance(event, ChildEnded):
                return event


@pytest.fixture
def nest() -> Iterator[Nest]:
    nest = Nest()
    yield nest
    nest.children.stop_all(grace_s=0)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0] != "Z"
    except OSError:
        return False


def test_events_come_in_order_and_the_end_last(nest: Nest) -> None:
    nest.start("answer", order=b"x" * 100)
    assert nest.next_event() == FetchProgress(chunks_done=1, chunks_total=2, bytes_received=3)
    assert nest.next_event() == DeployRefused(reason="order of 100 bytes")
    assert nest.end().clean


def test_job_larger_than_a_pipe_does_not_block_the_agent(nest: Nest) -> None:
    before = time.monotonic()
    nest.start("answer", order=b"x" * 500_000)
    assert time.monotonic() - before < 1.0
    nest.next_event()
    assert nest.next_event() == DeployRefused(reason="order of 500000 bytes")


def test_garbage_is_survived(nest: Nest) -> None:
    nest.start("garbage")
    assert nest.next_event() == DeployRefused(reason="after garbage")
    assert nest.end().clean


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        ("segfault", "killed by SIGSEGV"),
        ("abort", "killed by SIGABRT"),
        ("fail", "ended with exit code 3: the disk is on fire"),
    ],
)
def test_death_is_told_in_words(nest: Nest, behaviour: str, reason: str) -> None:
    nest.start(behaviour)
    end = nest.end()
    assert (end.reason, end.clean) == (reason, False)


def test_hanging_child_is_killed_with_the_agents_reason(nest: Nest) -> None:
    child = nest.start("hang")
    nest.next_event()
    child.kill("gave no answer within 5 s")
    assert nest.end() == ChildEnded(child.id, "gave no answer within 5 s", clean=False)


def test_memory_limit_stops_a_child_and_not_the_agent(nest: Nest) -> None:
    nest.start("eat", memory_limit=256 * 1024 * 1024)
    end = nest.end()
    assert not end.clean
    assert "MemoryError" in end.reason


def test_closing_the_input_lets_a_child_finish(nest: Nest) -> None:
    child = nest.start("listen")
    nest.next_event()
    child.close_input()
    assert nest.next_event() == DeployRefused(reason="input ended")
    assert nest.end().clean


def test_orders_to_a_dead_child_are_no_error(nest: Nest) -> None:
    child = nest.start("abort")
    nest.end()
    child.close_input()
    child.kill("too late")


def test_stopping_leaves_no_child(nest: Nest) -> None:
    nest.start("hang")
    nest.start("listen")
    pids = []
    for _ in range(2):
        event = nest.next_event()
        assert isinstance(event, FetchProgress)
        pids.append(event.bytes_received)
    nest.children.stop_all(grace_s=0.2)
    assert not any(is_alive(pid) for pid in pids)
    assert all(pid != os.getpid() for pid in pids)


def test_program_that_cannot_be_started_looks_like_a_child_that_ended(tmp_path: Path) -> None:
    inbox: queue.SimpleQueue[InboxEvent] = queue.SimpleQueue()
    children = ProcessChildren(inbox.put, cwd=tmp_path / "missing")
    child = children.start("deploy", job("answer"))
    event = inbox.get(timeout=5)
    assert isinstance(event, ChildEnded)
    assert (event.child, event.clean) == (child.id, False)
    assert "could not be started" in event.reason


@pytest.mark.parametrize(("more", "reason"), [(0, "killed by SIGKILL"), (1, "killed by the kernel: out of memory")])
def test_a_kill_while_the_kernel_counts_one_is_lack_of_memory(nest: Nest, more: int, reason: str) -> None:
    nest.start("hang")
    event = nest.next_event()
    assert isinstance(event, FetchProgress)
    nest.oom_kills += more
    os.kill(event.bytes_received, signal.SIGKILL)
    assert nest.end().reason == reason
