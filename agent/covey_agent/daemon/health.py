"""The device owner's health hook: asked again and again, and evidence against a new model if it held before and fails with it.

Rules:
- One hook at a time, in a child; whatever it does, it cannot hold up the agent.
- A hook that was failing already when the new model began to serve says nothing about it, until it has held once.
- Outside of probation a hook that begins to fail, or holds again, is an alarm and no more.
"""

import logging
import shlex
from collections.abc import Callable, Mapping

from covey_agent.core.jobs import ChildEvent, HookEnded, HookJob
from covey_agent.daemon.kit import Kit
from covey_agent.ports import Child

logger = logging.getLogger(__name__)


class HealthHook:
    """Asks at an interval, if the owner has given a hook."""

    def __init__(self, kit: Kit, *, about: Callable[[], Mapping[str, str]], alarm: Callable[[str, str], None]) -> None:
        """`about`: what the hook is told in its environment."""
        self._kit = kit
        self._about = about
        self._alarm = alarm
        self._guilty: Callable[[str], None] | None = None
        self._child: Child | None = None
        self._failures = 0  # in a row
        self._counts = False  # failures count against the model in probation
        self._again = False

    def begin(self) -> None:
        """Ask for the first time. Nothing happens without a hook."""
        if self._kit.settings.health.command:
            self._ask()

    def probation_begins(self, guilty: Callable[[str], None]) -> None:
        """A new model serves from now on: ask at once, and tell `guilty` if it fails too often."""
        self._guilty, self._counts = guilty, self._failures == 0
        if self._kit.settings.health.command:
            self._ask()

    def probation_ends(self) -> None:
        """One way or another."""
        self._guilty = None

    def child_spoke(self, child: Child, event: ChildEvent) -> None:
        """The hook's answer."""
        if isinstance(event, HookEnded) and child is self._child:
            self._child = None
            self._judge(event)

    def child_ended(self, child: Child, reason: str, *, clean: bool) -> None:
        """Without an answer, the hook has failed."""
        if child is self._child:
            self._child = None
            self._judge(HookEnded(healthy=False, reason=f"the health hook's child {reason}"))

    def _ask(self) -> None:
        if self._child is not None:
            self._again = True  # what is asked now was begun under another model
            return
        settings = self._kit.settings.health
        self._kit.timers.cancel("health")
        try:
            command = shlex.split(settings.command)
        except ValueError as exc:
            self._judge(HookEnded(healthy=False, reason=f"health.command cannot be read: {exc}"))
            return
        job = HookJob(command=command, environment=dict(self._about()), timeout_s=settings.timeout_s)
        self._child = self._kit.nursery.start(self, "hook", job, deadline_s=settings.timeout_s + 10.0)

    def _judge(self, ended: HookEnded) -> None:
        if self._again:
            self._again = False
            self._ask()
            return
        self._kit.timers.set("health", self._kit.settings.health.interval_s, self._ask)
        if ended.healthy:
            if self._failures and self._guilty is None:
                self._alarm("health", "the health hook holds again")
            self._failures, self._counts = 0, True
            return
        self._failures += 1
        if self._failures == 1 and self._guilty is None:
            self._alarm("health", ended.reason)
        (logger.warning if self._failures == 1 else logger.debug)("%s", ended.reason)
        if self._guilty is not None and self._counts and self._failures >= self._kit.settings.health.failures:
            guilty, self._guilty = self._guilty, None
            guilty(f"{ended.reason} ({self._failures} times in a row; it held before)")
