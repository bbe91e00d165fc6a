"""Children by owner: the part that started a child hears what it says and how it ended; a child past its deadline is killed."""

import logging
from collections.abc import Sequence
from typing import Protocol

import msgspec

from covey_agent.core.jobs import ChildEvent
from covey_agent.daemon.timers import Timers
from covey_agent.inbox import ChildEnded, ChildSpoke
from covey_agent.ports import Child, Children

logger = logging.getLogger(__name__)
FINISHING = frozenset({"infer", "train"})  # these drain when their input ends; the others may be interrupted anywhere


class Owner(Protocol):
    """A part that starts children."""

    def child_spoke(self, child: Child, event: ChildEvent) -> None: ...

    def child_ended(self, child: Child, reason: str, *, clean: bool) -> None: ...


class Nursery:
    """Routes events of children to their owners."""

    def __init__(self, children: Children, timers: Timers) -> None:
        self._children = children
        self._timers = timers
        self._owned: dict[int, tuple[Child, Owner]] = {}

    def start(
        self,
        owner: Owner,
        program: str,
        job: msgspec.Struct,
        *,
        deadline_s: float | None = None,
        pass_fds: Sequence[int] = (),
        memory_limit_mb: int = 0,
    ) -> Child:
        """Start a child for `owner`, to be killed if it gives no answer within `deadline_s`."""
        child = self._children.start(program, job, pass_fds=pass_fds, memory_limit=memory_limit_mb * 1024 * 1024)
        self._owned[child.id] = (child, owner)
        if deadline_s is not None:
            self.extend(child, deadline_s)
        return child

    def extend(self, child: Child, deadline_s: float) -> None:
        """The child has `deadline_s` from now on."""
        self._timers.set(f"deadline:{child.id}", deadline_s, lambda: child.kill(f"gave no answer within {deadline_s:g} s"))

    def release_deadline(self, child: Child) -> None:
        """The child may take as long as it likes."""
        self._timers.cancel(f"deadline:{child.id}")

    def disown(self, child: Child, reason: str) -> None:
        """Kill a child and hear no more of it."""
        self._owned.pop(child.id, None)
        self.release_deadline(child)
        child.kill(reason)

    def dispatch(self, event: ChildSpoke | ChildEnded) -> None:
        """Give an event to its owner; one of a disowned child is dropped."""
        owned = self._owned.get(event.child)
        if owned is None:
            return
        child, owner = owned
        if isinstance(event, ChildSpoke):
            owner.child_spoke(child, event.event)
            return
        del self._owned[event.child]
        self.release_deadline(child)
        (logger.info if event.clean else logger.warning)("%s %s", child.program, event.reason)
        owner.child_ended(child, event.reason, clean=event.clean)

    def stop_all(self, *, grace_s: float) -> None:
        """End every child; only those with something to finish are given time."""
        for child, _ in self._owned.values():
            if child.program not in FINISHING:
                child.kill("the agent stopped")
        self._owned.clear()
        self._children.stop_all(grace_s=grace_s)
