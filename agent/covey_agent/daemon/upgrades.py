"""Tells the server that a new version of this agent was tried and given up. A success tells itself: every report names the version."""

import logging
from collections.abc import Callable

import msgspec

from covey_agent.daemon.kit import Kit
from covey_agent.errors import StoreError
from covey_agent.versions import FILE_NAME, FOLDER

logger = logging.getLogger(__name__)
KEY_TOLD = "upgrade-told"


class Failed(msgspec.Struct, frozen=True):
    """`versions.Failure`, as the idle process reads it without the standard library's JSON."""

    version: str
    reason: str
    at: int


class Seen(msgspec.Struct, frozen=True):
    """All that the agent itself wants of `versions.json`."""

    last_failure: Failed | None = None


class Upgrades:
    """Looks once, at the start: the launcher that wrote down the failure has started this agent."""

    def __init__(self, kit: Kit, alarm: Callable[[str, str], None]) -> None:
        self._kit = kit
        self._alarm = alarm

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

    def _read(self) -> Seen:
        try:
            return msgspec.json.decode((self._kit.state_dir / FOLDER / FILE_NAME).read_bytes(), type=Seen)
        except FileNotFoundError:
            return Seen()
        except (OSError, msgspec.DecodeError) as exc:
            logger.warning("%s is unreadable: %s", FILE_NAME, exc)
            return Seen()
