"""The infer workers: one a slot at most, of which one is meant to accept; the other may be kept warm.

Rules:
- The agent owns the listening sockets and lends them to every worker; connections wait in their backlog while workers change.
- A worker is killed if it does not load in time, falls silent while it should serve, has had one request for too long, or does not
  finish draining.
- What the end of a worker means is not decided here: `Listener.worker_ended` is told and answers with what to do.
"""

import logging
from dataclasses import dataclass
from typing import Protocol

from covey_agent.adapters.slot_files import SlotFiles
from covey_agent.core.backoff import WORKER_RESTART
from covey_agent.core.jobs import Accepting, ChildEvent, Drain, InferJob, InferReady, InferWindow, Pause, Resume
from covey_agent.daemon.kit import Kit
from covey_agent.ports import Child, Sockets

logger = logging.getLogger(__name__)
STABLE_S = 60.0  # a worker that served this long has recovered; one that dies sooner waits longer each time
RESUME_TIMEOUT_S = 3.0  # a warm worker that gives no sign after Resume is replaced by a cold start
DRAIN_TIMEOUT_S = 35.0  # a little more than the worker gives its own connections


class Listener(Protocol):
    """Who decides about workers: the deployments."""

    def worker_ready(self, slot: str) -> None: ...

    def worker_accepts(self, slot: str) -> None: ...

    def worker_window(self, slot: str, window: InferWindow) -> None: ...

    def worker_ended(self, slot: str, reason: str) -> None: ...


@dataclass(slots=True)
class Worker:
    """One running infer child."""

    slot: str
    child: Child
    ready: bool = False
    accepting: bool = False  # has given a sign that it accepts
    wanted: bool = False  # is meant to accept
    leaving: bool = False  # drained or replaced; its end is no news
    accepting_since: float = 0.0  # monotonic


class Serving:
    """Starts, pauses, resumes, drains and kills workers."""

    def __init__(self, kit: Kit, sockets: Sockets, slots: SlotFiles) -> None:
        self._kit = kit
        self._sockets = sockets
        self._slots = slots
        self._workers: dict[str, Worker] = {}  # by slot
        self._by_child: dict[int, Worker] = {}
        self._failures: dict[str, int] = {}
        self._listener: Listener | None = None

    def listen(self, listener: Listener) -> None:
        """Tell this one about workers."""
        self._listener = listener

    @property
    def accepting_slot(self) -> str:
        """The slot whose worker accepts requests now, or ""."""
        return next((worker.slot for worker in self._workers.values() if worker.accepting and worker.wanted), "")

    def is_accepting(self, slot: str) -> bool:
        """Whether the worker of this slot accepts requests."""
        return bool(slot) and self.accepting_slot == slot

    def start(self, slot: str, *, paused: bool) -> None:
        """Start a worker on a slot that has none, or do nothing."""
        self._kit.timers.cancel(f"restart:{slot}")
        if slot in self._workers:
            return
        settings = self._kit.settings.inference
        job = InferJob(
            slot_dir=str(self._slots.path(slot)),
            slot=slot,
            unix_fd=self._sockets.unix_fd,
            tcp_fd=self._sockets.tcp_fd,
            token=self._sockets.token,
            handover_put_fd=self._sockets.handover_fds[0],
            handover_take_fd=self._sockets.handover_fds[1],
            threads=settings.threads,
            paused=paused,
        )
        fds = [fd for fd in (self._sockets.unix_fd, self._sockets.tcp_fd, *self._sockets.handover_fds) if fd >= 0]
        child = self._kit.nursery.start(
            self, "infer", job, deadline_s=settings.ready_timeout_s, pass_fds=fds, memory_limit_mb=settings.memory_limit_mb
        )
        worker = Worker(slot=slot, child=child, wanted=not paused)
        self._workers[slot] = worker
        self._by_child[child.id] = worker

    def let_accept(self, slot: str) -> None:
        """Make the worker of this slot the accepting one: others pause, it resumes, or is started cold."""
        for other in self._workers.values():
            if other.slot != slot and other.wanted:
                self._pause(other)
        worker = self._workers.get(slot)
        if worker is None:
            self.start(slot, paused=False)
        elif not worker.wanted:
            worker.wanted = True
            if worker.ready:
                self._resume(worker)

    def restart_later(self, slot: str) -> None:
        """Start it again after a back-off that grows with its failures."""
        failures = self._failures[slot] = self._failures.get(slot, 0) + 1
        delay = WORKER_RESTART.delay_s(failures, self._kit.random)
        logger.warning("the worker of slot %s is started again in %.1f s (failure %d)", slot, delay, failures)
        self._kit.timers.set(f"restart:{slot}", delay, lambda: self.start(slot, paused=False))

    def retire(self, slot: str, *, within_s: float = DRAIN_TIMEOUT_S) -> None:
        """Let it finish what is in flight and end; it is killed if that takes longer."""
        worker = self._detach(slot)
        if worker is None:
            return
        worker.child.send(Drain())
        worker.child.close_input()
        self._kit.nursery.extend(worker.child, within_s)

    def kill(self, slot: str, reason: str) -> None:
        """End it at once and forget it."""
        worker = self._detach(slot)
        if worker is not None:
            self._kit.nursery.disown(worker.child, reason)
            self._by_child.pop(worker.child.id, None)

    def child_spoke(self, child: Child, event: ChildEvent) -> None:
        """An event of a worker."""
        worker = self._by_child.get(child.id)
        if worker is None or worker.leaving:
            return
        match event:
            case InferReady():
                self._is_ready(worker)
            case Accepting():
                self._shows_life(worker)
            case InferWindow() if event.busy_s > self._kit.settings.inference.hang_timeout_s:
                # Its reporting thread lives, its model does not come back.
                child.kill(f"hangs: one request has been with the model for {event.busy_s:.0f} s")
            case InferWindow():
                self._shows_life(worker)
                self._tell().worker_window(worker.slot, event)
            case _:
                logger.warning("an infer worker sent an unexpected %s", type(event).__name__)

    def child_ended(self, child: Child, reason: str, *, clean: bool) -> None:
        """A worker is gone."""
        worker = self._by_child.pop(child.id, None)
        if worker is None or worker.leaving:
            return
        self._forget(worker)
        self._tell().worker_ended(worker.slot, f"{reason} by itself" if clean else reason)

    def _is_ready(self, worker: Worker) -> None:
        worker.ready = True
        self._kit.nursery.release_deadline(worker.child)
        if worker.wanted:
            # It may have been started paused, and been wanted before it was ready: Resume is idempotent.
            worker.child.send(Resume())
            self._shows_life(worker)
        self._tell().worker_ready(worker.slot)

    def _shows_life(self, worker: Worker) -> None:
        if not worker.wanted:
            return
        now = self._kit.clock.monotonic()
        if worker.accepting and now - worker.accepting_since > STABLE_S:
            self._failures.pop(worker.slot, None)
        self._kit.nursery.extend(worker.child, self._kit.settings.inference.silence_timeout_s)
        if not worker.accepting:
            worker.accepting, worker.accepting_since = True, now
            self._tell().worker_accepts(worker.slot)

    def _pause(self, worker: Worker) -> None:
        worker.wanted = worker.accepting = False
        if worker.ready:
            self._kit.nursery.release_deadline(worker.child)
        worker.child.send(Pause())

    def _resume(self, worker: Worker) -> None:
        worker.child.send(Resume())
        self._kit.nursery.extend(worker.child, RESUME_TIMEOUT_S)

    def _detach(self, slot: str) -> Worker | None:
        self._kit.timers.cancel(f"restart:{slot}")
        worker = self._workers.get(slot)
        if worker is not None:
            self._forget(worker)
            worker.leaving = True
        return worker

    def _forget(self, worker: Worker) -> None:
        if self._workers.get(worker.slot) is worker:
            del self._workers[worker.slot]

    def _tell(self) -> Listener:
        if self._listener is None:
            raise RuntimeError("nobody listens to the workers")
        return self._listener
