"""Aftercare: a proven model is judged further, stretch by stretch, for as long as the slot that was proven before it is still there."""

from collections.abc import Callable

from covey_agent.adapters.slot_files import SlotFiles
from covey_agent.core.jobs import InferWindow
from covey_agent.core.machine import Machine, can_revert
from covey_agent.core.probation import Evidence, judge_proven, with_crash, with_window
from covey_agent.daemon.kit import Kit
from covey_contract.release import Bounds


class Aftercare:
    """The evidence of one stretch against the model in the committed slot."""

    def __init__(self, kit: Kit, slots: SlotFiles) -> None:
        self._kit = kit
        self._slots = slots
        self._guilty: Callable[[str], None] = _nobody
        self._manifest = ""
        self._bounds = Bounds()
        self._evidence = Evidence()
        self._since = 0.0

    def listen(self, guilty: Callable[[str], None]) -> None:
        """Whom to tell that the proven model has turned bad."""
        self._guilty = guilty

    def window_came(self, machine: Machine, window: InferWindow) -> None:
        """What the worker of the committed slot saw."""
        if self._begin(machine):
            self._evidence = with_window(self._evidence, window)
            self._judge()

    def worker_died(self, machine: Machine, reason: str) -> bool:
        """The worker of the committed slot died; whether the model was given up for it."""
        if not self._begin(machine):
            return False
        self._evidence = with_crash(self._evidence, reason)
        return self._judge()

    def _begin(self, machine: Machine) -> bool:
        """Whether there is a way back; begins a stretch for another model, or when the last one is over."""
        if not can_revert(machine) or machine.proven is None or not self._slots.is_filled(machine.previous):
            return False  # a model that turns bad is still better than none
        now = self._kit.clock.monotonic()
        if machine.proven.manifest != self._manifest:
            self._manifest, self._bounds = machine.proven.manifest, self._slots.bounds(machine.committed)
        elif now - self._since < self._kit.settings.inference.proven_stretch_s:
            return True
        self._evidence, self._since = Evidence(), now
        return True

    def _judge(self) -> bool:
        reason = judge_proven(self._evidence, self._bounds, max_crashes=self._kit.settings.inference.proven_crashes)
        if reason:
            self._evidence, self._manifest = Evidence(), ""
            self._guilty(f"after its probation: {reason}")
        return bool(reason)


def _nobody(_: object) -> None:
    raise RuntimeError("nobody listens to the aftercare")
