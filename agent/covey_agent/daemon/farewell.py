"""Leaving the fleet for good, on a signed command: noted, answered, then the agent stops. Its owner's policy says what may be wiped."""

import logging

from covey_agent.adapters.leaving import Left, note_leaving
from covey_agent.daemon.kit import Kit
from covey_agent.daemon.replies import Replies
from covey_agent.errors import StateError
from covey_agent.inbox import StopAsked
from covey_contract.messages import Decommission, Outcome

logger = logging.getLogger(__name__)
ANSWER_S = 3.0  # for the answer to reach the server, which then ends the connection; without it, it revokes at its deadline


class Farewell:
    """Carries out Decommission."""

    def __init__(self, kit: Kit, replies: Replies) -> None:
        self._kit = kit
        self._replies = replies

    def leave(self, command: Decommission) -> None:
        """Note it, answer, stop. What is noted survives any kill: the next start finishes it and does not run."""
        may_wipe = self._kit.settings.identity.allow_wipe == "yes"
        wipe = command.wipe and may_wipe
        device = self._kit.identity.file.device
        logger.warning(
            "decommissioned by the fleet (%s); %s", command.id, "everything but the ledger is wiped" if wipe else "nothing is wiped"
        )
        try:
            note_leaving(self._kit.state_dir, Left(device=device, command=command.id, at=self._kit.clock.now_ms(), wipe=wipe))
        except StateError as exc:
            self._replies.give(command.id, Outcome.FAILED, expires_at=command.expires_at, reason=str(exc))
            return
        reason = "" if wipe == command.wipe else "this device's own policy does not allow a wipe ([identity] allow_wipe)"
        wiped = "keys, models, readings" if wipe else "nothing"
        values = {"wiped": wiped, "kept": "the privacy ledger" if wipe else "everything"}
        self._replies.give(command.id, Outcome.DONE, expires_at=command.expires_at, reason=reason, values=values)
        self._kit.timers.set("farewell", ANSWER_S, lambda: self._kit.post(StopAsked("decommissioned")))
