"""What this machine can run, found out by a child; the last answer is kept, so that a start need not wait for it."""

import logging
from collections.abc import Callable

import msgspec

from covey_agent.core.jobs import ChildEvent, Probed, ProbeJob
from covey_agent.daemon.kit import Kit
from covey_agent.errors import StoreError
from covey_agent.ports import Child
from covey_contract.messages import Capabilities

logger = logging.getLogger(__name__)
KEY = "capabilities"
KEY_FINGERPRINT = "probed"  # what the machine was when it was probed
TIMEOUT_S = 300.0
MAX_TRIES = 3
RETRY_S = 10.0


class Probing:
    """Probes in the background when it has never done so, and whenever the machine or a runtime is another than it was then."""

    def __init__(self, kit: Kit, *, fingerprint: str, known: Callable[[], None]) -> None:
        self._kit = kit
        self._known = known
        self._waiting: Callable[[], None] | None = None
        self._tries = 0
        stored = kit.store.load(KEY)
        self._is_known = stored is not None
        self._is_answered = False
        self.fingerprint = fingerprint
        self.capabilities = msgspec.json.decode(stored, type=Capabilities) if stored else Capabilities()

    def begin(self) -> None:
        """Start the probe, if there is anything new to find out."""
        if self.capabilities.runtimes and self._kit.store.load(KEY_FINGERPRINT) == self.fingerprint.encode("ascii"):
            self._is_answered = True
            self._settle()
            return
        self._tries += 1
        self._kit.nursery.start(self, "probe", ProbeJob(), deadline_s=TIMEOUT_S)

    def when_known(self, action: Callable[[], None]) -> None:
        """Do it now if an answer is known, else when it comes. The last one asked for counts."""
        if self._is_known:
            action()
        else:
            self._waiting = action

    def forget_waiting(self) -> None:
        """Nobody waits any more."""
        self._waiting = None

    def child_spoke(self, child: Child, event: ChildEvent) -> None:
        """The answer."""
        if not isinstance(event, Probed):
            logger.warning("a probe child sent an unexpected %s", type(event).__name__)
            return
        for runtime, finding in event.findings.items():
            logger.info("runtime %s cannot be used here: %s", runtime, finding)
        changed = event.capabilities != self.capabilities
        self.capabilities = event.capabilities
        self._keep(event.capabilities)
        if changed:
            self._known()
        self._is_answered = True
        self._settle()

    def child_ended(self, child: Child, reason: str, *, clean: bool) -> None:
        """Without an answer: try again, and at last go on with what is known, which may be nothing: then no variant will fit."""
        if self._is_answered:
            return
        logger.warning("the probe of this machine %s without an answer", reason)
        if self._tries < MAX_TRIES:
            self._kit.timers.set("probe-retry", RETRY_S, self.begin)
        else:
            self._settle()

    def _keep(self, capabilities: Capabilities) -> None:
        try:
            self._kit.store.save({KEY: msgspec.json.encode(capabilities), KEY_FINGERPRINT: self.fingerprint.encode("ascii")}, durable=False)
        except StoreError as exc:  # the next start waits for its own probe then
            logger.warning("what this machine can run cannot be noted: %s", exc)

    def _settle(self) -> None:
        self._is_known = True
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            waiting()
