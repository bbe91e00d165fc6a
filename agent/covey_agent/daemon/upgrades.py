"""Tells the server that a new version of this agent was tried and given up. A success tells itself: every report names the version."""

from collections.abc import Callable

from covey_agent.daemon.kit import Kit
from covey_agent.errors import StoreError
from covey_agent.versions import VersionsFile

KEY_TOLD = "upgrade-told"


class Upgrades:
    """Looks once, at the start: the launcher that wrote down the failure has started this agent."""

    def __init__(self, kit: Kit, file: VersionsFile, alarm: Callable[[str, str], None]) -> None:
        self._kit = kit
        self._file = file
        self._alarm = alarm

    def begin(self) -> None:
        """Raise an alarm about a failure that was not told yet; killed in between, it is told twice rather than never."""
        failure = self._file.load().last_failure
        if failure is None:
            return
        mark = f"{failure.version} {failure.at}".encode()
        try:
            if self._kit.store.load(KEY_TOLD) == mark:
                return
            self._alarm("agent-upgrade", f"the upgrade of the agent to {failure.version} failed: {failure.reason}")
            self._kit.store.save({KEY_TOLD: mark})
        except StoreError:  # a full disk: the next start tells it
            return
