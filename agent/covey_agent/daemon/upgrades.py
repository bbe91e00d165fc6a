"""Upgrades of this agent: carries out the server's order for one, and tells the server of one that was tried and given up.

A success tells itself: every report names the version.
"""

import logging
from collections.abc import Callable

import msgspec

from covey_agent.core.jobs import ChildEvent, Rejected, UpgradeJob, UpgradeStaged, VerifyFailed
from covey_agent.daemon.kit import Kit
from covey_agent.daemon.replies import Replies
from covey_agent.errors import StoreError
from covey_agent.inbox import RESTART, StopAsked
from covey_agent.ports import Child
from covey_agent.versions import FILE_NAME, FOLDER
from covey_contract.messages import Outcome, Profile, UpgradeAgent

logger = logging.getLogger(__name__)
KEY_TOLD = "upgrade-told"
DEADLINE_S = 1800.0  # fetching and pip, on a small machine over a slow link
ANSWER_S = 3.0  # for the answer to reach the server
BUSY_S = 10.0


class Failed(msgspec.Struct, frozen=True):
    """`versions.Failure`, as the idle process reads it without the standard library's JSON."""

    version: str
    reason: str
    at: int


class Seen(msgspec.Struct, frozen=True):
    """All that the agent itself wants of `versions.json`."""

    last_failure: Failed | None = None


class Upgrades:
    """Carries out UpgradeAgent, and looks once, at the start: the launcher that wrote down a failure has started this agent."""

    def __init__(self, kit: Kit, *, replies: Replies, alarm: Callable[[str, str], None], is_busy: Callable[[], bool]) -> None:
        """`is_busy`: whether a new start would cut something off that should rather end first."""
        self._kit = kit
        self._replies = replies
        self._alarm = alarm
        self._is_busy = is_busy
        self._child: Child | None = None
        self._command: UpgradeAgent | None = None

    def begin(self) -> None:
        """Raise an alarm about a failure that was not told yet; killed in between, it is told twice rather than never."""
        failure = self._read().last_failure
        if failure is None:
            return
        mark = f"{failure.version} {failure.at}".encode()
        try:
            if self._kit.store.load(KEY_TOLD) != mark:
                self._alarm("agent-upgrade", f"the upgrade of the agent to {failure.version} failed: {failure.reason}")
                self._kit.store.save({KEY_TOLD: mark})
        except StoreError as exc:
            logger.warning("the next start tells of the upgrade that failed: %s", exc)

    def ordered(self, command: UpgradeAgent, order: bytes) -> None:
        """The server asks for another version. Nothing of it is believed before a child has verified it."""
        if self._command is not None:
            if self._command.id != command.id:
                self._answer(command, Outcome.REFUSED, "another upgrade is under way")
            return
        refusal = self._why_not()
        if refusal:
            self._answer(command, Outcome.REFUSED, refusal)
            return
        logger.info("the server orders an upgrade of the agent to %s (%s)", command.version, command.id)
        self._command = command
        job = UpgradeJob(state_dir=str(self._kit.state_dir), broker=self._kit.identity.broker, order=order)
        self._child = self._kit.nursery.start(self, "upgrade", job, deadline_s=DEADLINE_S)

    def child_spoke(self, child: Child, event: ChildEvent) -> None:
        """It is installed, or it is not."""
        match event:
            case UpgradeStaged():
                self._settle(Outcome.DONE, "", version=event.version)
                self._kit.timers.set("start-anew", ANSWER_S, self._start_anew)
            case Rejected():
                self._settle(Outcome.REFUSED, event.reason)
            case VerifyFailed():
                self._settle(Outcome.FAILED, event.reason)
            case _:
                logger.warning("an upgrade child sent an unexpected %s", type(event).__name__)

    def child_ended(self, child: Child, reason: str, *, clean: bool) -> None:
        """Gone; if it had not answered, the present version is current whatever it was at. One that had may end after the next began."""
        if child is not self._child:
            return
        self._settle(Outcome.FAILED, f"the upgrade child {reason}")
        self._child = None

    def _why_not(self) -> str:
        allowed, profile = self._kit.settings.deploy.agent_upgrades, self._kit.identity.file.profile
        if allowed == "no" or (allowed == "auto" and profile is Profile.PARTNER):
            return "this agent's own settings do not allow it ([deploy] agent_upgrades)"
        return "" if self._kit.may_restart else "this agent was not started by covey-agent-launch"

    def _settle(self, outcome: Outcome, reason: str, **values: str) -> None:
        command, self._command = self._command, None
        if command is not None:
            self._answer(command, outcome, reason, **values)

    def _answer(self, command: UpgradeAgent, outcome: Outcome, reason: str, **values: str) -> None:
        (logger.info if outcome is Outcome.DONE else logger.warning)("upgrade to %s: %s %s", command.version, outcome.value, reason)
        self._replies.give(command.id, outcome, expires_at=command.expires_at, reason=reason, values=values)

    def _start_anew(self) -> None:
        if self._is_busy():
            self._kit.timers.set("start-anew", BUSY_S, self._start_anew)
        else:
            self._kit.post(StopAsked(RESTART))

    def _read(self) -> Seen:
        try:
            return msgspec.json.decode((self._kit.state_dir / FOLDER / FILE_NAME).read_bytes(), type=Seen)
        except FileNotFoundError:
            return Seen()
        except (OSError, msgspec.DecodeError) as exc:
            logger.warning("%s is unreadable: %s", FILE_NAME, exc)
            return Seen()
