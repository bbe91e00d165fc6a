"""The watch over a model in probation: collects evidence while it serves, and ends with a verdict.

A release that breaks the device's connection cannot be mended from afar. So a connection that worked before probation must be there at
its end too: one that is away then, or is gone for `control_loss_s` in between, sends the model back. That is no proof of guilt, since
networks fail by themselves, so nothing is quarantined for it; a device that was offline before is not judged by it at all.
"""

import logging
from collections.abc import Callable

from covey_agent.adapters.slot_files import SlotFiles
from covey_agent.core.jobs import InferWindow
from covey_agent.core.machine import Deployment, Event, Happened
from covey_agent.core.probation import Evidence, judge, with_crash, with_window
from covey_agent.daemon.health import HealthHook
from covey_agent.daemon.kit import Kit
from covey_contract.release import Bounds

logger = logging.getLogger(__name__)
NOTE_INTERVAL_S = 30.0  # how often the time survived is written, so that a reboot does not begin probation from zero


class Watch:
    """One probation at a time. Its time runs only while the new worker accepts requests."""

    def __init__(self, kit: Kit, slots: SlotFiles, health: HealthHook) -> None:
        self._kit = kit
        self._slots = slots
        self._health = health
        self._happened: Callable[[Happened], None] = _nobody
        self._guilty: Callable[[str], None] = _nobody
        self._deployment: Deployment | None = None
        self._bounds = Bounds()
        self._evidence = Evidence()
        self._since: float | None = None
        self._connected = False
        self._worked_before = False
        self._lost_at: float | None = None

    def listen(self, happened: Callable[[Happened], None], guilty: Callable[[str], None]) -> None:
        """Whom to tell that time was survived or probation passed, and that there is evidence."""
        self._happened = happened
        self._guilty = guilty

    def begin(self, deployment: Deployment) -> None:
        """Watch this deployment's model; the time of earlier processes counts."""
        self._deployment = deployment
        self._bounds = self._slots.bounds(deployment.slot)
        self._evidence = Evidence()
        self._since = None
        self._worked_before = deployment.connected_before
        self._lost_at = None if self._connected else self._kit.clock.monotonic()
        self._watch_connection()

    def connected(self) -> None:
        """The control channel is there."""
        self._connected, self._lost_at = True, None
        self._kit.timers.cancel("probation-control")
        if self._deployment is not None:
            self._worked_before = True
            if self._since is not None and not self._kit.timers.is_set("probation-end"):
                self._end_of_probation()

    def disconnected(self) -> None:
        """The control channel is gone."""
        self._connected = False
        if self._lost_at is None:
            self._lost_at = self._kit.clock.monotonic()
            self._watch_connection()

    @property
    def is_connected(self) -> bool:
        """Whether the control channel is there."""
        return self._connected

    def worker_accepts(self) -> None:
        """The new model serves: the time runs."""
        if self._deployment is None or self._since is not None:
            return
        self._since = self._kit.clock.monotonic()
        self._health.probation_begins(self._hook_failed)
        left = max(0.0, self._deployment.probation_s - self._deployment.served_s)
        self._kit.timers.set("probation-end", left, self._end_of_probation)
        self._kit.timers.set("probation-note", NOTE_INTERVAL_S, self._note_time)

    def window_came(self, window: InferWindow) -> None:
        """What the worker saw."""
        if self._deployment is None:
            return
        self._evidence = with_window(self._evidence, window)
        self._judge()

    def worker_died(self, reason: str) -> None:
        """The worker is gone."""
        if self._deployment is None:
            return
        self._evidence = with_crash(self._evidence, reason)
        self._judge()

    def end(self) -> None:
        """Probation is over, one way or another."""
        self._deployment = None
        self._kit.timers.cancel("probation-end")
        self._kit.timers.cancel("probation-note")
        self._kit.timers.cancel("probation-control")
        self._health.probation_ends()

    def _hook_failed(self, reason: str) -> None:
        if self._deployment is not None:
            self.end()
            self._guilty(reason)

    def _watch_connection(self) -> None:
        limit_s = self._kit.settings.inference.control_loss_s
        if self._deployment is not None and self._worked_before and self._lost_at is not None and limit_s > 0:
            left = self._lost_at + limit_s - self._kit.clock.monotonic()
            self._kit.timers.set("probation-control", max(0.0, left), self._give_up_connection)

    def _give_up_connection(self) -> None:
        if self._deployment is not None and not self._connected:
            limit_s = self._kit.settings.inference.control_loss_s
            self.end()
            reason = f"the connection to the server, which worked before, was lost in probation and not back within {limit_s:g} s"
            self._happened(Happened(Event.CONTROL_LOST, reason=reason))

    def _judge(self, *, final: bool = False) -> bool:
        reason = judge(self._evidence, self._bounds, max_crashes=self._kit.settings.inference.max_crashes, final=final)
        if reason:
            self.end()
            self._guilty(reason)
        return not reason

    def _end_of_probation(self) -> None:
        if self._deployment is not None and self._judge(final=True):
            if self._kit.timers.is_set("probation-control"):
                logger.info("probation is over but for the connection, which worked before")
                return  # `connected` comes back here, or the time for it runs out
            self.end()
            self._happened(Happened(Event.PROBATION_PASSED))

    def _note_time(self) -> None:
        if self._deployment is None or self._since is None:
            return
        served = self._deployment.served_s + self._kit.clock.monotonic() - self._since
        self._happened(Happened(Event.SERVED, served_s=served))
        self._kit.timers.set("probation-note", NOTE_INTERVAL_S, self._note_time)


def _nobody(_: object) -> None:
    raise RuntimeError("nobody listens to the watch")
