"""Signs of life for the service manager: READY once the agent answers, WATCHDOG while its event loop turns, STATUS in a few words.

- READY comes from the loop, after the boot: when the proven model serves, or at once where there is none, or after `PATIENCE_S` where
  a model does not load, since an agent without a model can still be mended from afar.
- WATCHDOG comes from a timer of the loop, twice within the period: a loop that is stuck in one step says nothing and is ended by the
  manager. A model that is stuck is none of its business; `serving.py` watches over that one.
- The launcher (`launch.py`) listens on the same channel while a new version of the agent is on trial; `CONNECTED` is for it alone.
"""

from typing import Protocol

from covey_agent.daemon.kit import Kit
from covey_agent.daemon.live import Live

PATIENCE_S = 30.0
BEATS_PER_PERIOD = 2
CONNECTED = "X_COVEY_CONNECTED=1"


class Notifier(Protocol):
    """Tells the service manager."""

    @property
    def watchdog_s(self) -> float: ...

    def tell(self, *assignments: str) -> None: ...


class Heartbeat:
    """Hears of every change of what `Live` shows."""

    def __init__(self, kit: Kit, notifier: Notifier) -> None:
        self._kit = kit
        self._notifier = notifier
        self._begun = False
        self._ready = False
        self._connected = False
        self._answers = False
        self._status = ""

    def begin(self) -> None:
        """The boot is over."""
        self._kit.timers.set("ready-anyway", PATIENCE_S, self._tell_ready)
        if self._notifier.watchdog_s:
            self._beat()
        self._kit.soon(self._look)  # as an event, because READY says that the loop turns

    def changed(self, live: Live, *, meant_to_serve: str) -> None:
        """How the agent is now; `meant_to_serve` is the slot that shall serve, "" if none."""
        self._answers = not meant_to_serve or live.accepting_slot == meant_to_serve
        model = f"slot {live.accepting_slot} serves" if live.accepting_slot else "no model serves"
        status = f"STATUS={'connected' if live.connected else 'not connected: ' + live.connection}; {model}"
        if status != self._status:
            self._status = status
            self._notifier.tell(status)
        if live.connected and not self._connected:
            self._notifier.tell(CONNECTED)
        self._connected = live.connected
        self._look_if_begun()

    def stopping(self) -> None:
        """The agent was asked to stop."""
        self._notifier.tell("STOPPING=1", "STATUS=stopping")

    def _look(self) -> None:
        self._begun = True
        self._look_if_begun()

    def _look_if_begun(self) -> None:
        if self._begun and self._answers:
            self._tell_ready()

    def _tell_ready(self) -> None:
        self._kit.timers.cancel("ready-anyway")
        if not self._ready:
            self._ready = True
            self._notifier.tell("READY=1")

    def _beat(self) -> None:
        self._notifier.tell("WATCHDOG=1")
        self._kit.timers.set("watchdog", self._notifier.watchdog_s / BEATS_PER_PERIOD, self._beat)
