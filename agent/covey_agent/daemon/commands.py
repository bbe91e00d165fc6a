"""Commands: decoded, checked for device and expiry, answered once, and handed to whoever carries them out.

What the agent does by itself on a command (stop a run, lift a quarantine) waits for a child that verifies the signature; an
invitation is verified by the train child before anything of it happens, and an upgrade of the agent by the upgrade child.
"""

import logging

from covey_agent.daemon.deployments import Audience, Deployments
from covey_agent.daemon.farewell import Farewell
from covey_agent.daemon.kit import Kit
from covey_agent.daemon.renewals import Renewals
from covey_agent.daemon.replies import Replies
from covey_agent.daemon.runs import Runs
from covey_agent.daemon.upgrades import Upgrades
from covey_agent.daemon.verifying import Verdict, Verifier
from covey_contract.codec import decode, decode_order
from covey_contract.errors import ContractError
from covey_contract.messages import (
    Command,
    Decommission,
    Desired,
    InviteToRun,
    Outcome,
    ReleaseQuarantine,
    RotateCertificate,
    Signed,
    StopRun,
    UpgradeAgent,
)

logger = logging.getLogger(__name__)


class Commands:
    """The other end of `down/command`."""

    def __init__(
        self,
        kit: Kit,
        *,
        replies: Replies,
        runs: Runs,
        deployments: Deployments,
        renewals: Renewals,
        farewell: Farewell,
        verifier: Verifier,
        upgrades: Upgrades,
        audience: Audience,
    ) -> None:
        self._kit = kit
        self._replies = replies
        self._runs = runs
        self._deployments = deployments
        self._renewals = renewals
        self._farewell = farewell
        self._verifier = verifier
        self._upgrades = upgrades
        self._audience = audience

    def message_came(self, payload: bytes) -> None:
        """A command arrived, perhaps not for the first time."""
        try:
            command = decode_order(decode(payload, Signed))
        except ContractError as exc:
            logger.warning("a command was refused: %s", exc)
            return
        if isinstance(command, Desired) or command.device != self._kit.identity.file.device:
            logger.warning("a command was refused: it is none, or for another device")
            return
        if self._replies.repeat(command.id):
            return
        if command.expires_at <= self._kit.clock.now_ms():
            logger.info("command %s has expired: ignored", command.id)
            return
        if isinstance(command, InviteToRun):
            self._runs.invited(command, payload)
        elif isinstance(command, UpgradeAgent):
            self._upgrades.ordered(command, payload)
        else:
            self._verifier.ask(f"command:{command.id}", payload, lambda verdict, why: self._verified(command, verdict, why))

    def _verified(self, command: Command, verdict: Verdict, reason: str) -> None:
        if verdict is Verdict.UNKNOWN:
            return  # the server asks again, or the command expires
        if verdict is Verdict.REJECTED:
            self._audience.alarm_raised("order_rejected", reason)
            self._reply(command, Outcome.REFUSED, reason)
            return
        match command:
            case StopRun():
                done = self._runs.stop(command.run, "the server ended the run")
                self._reply(command, Outcome.DONE, "" if done else "this run was not active here")
            case ReleaseQuarantine():
                known = command.digest in {entry.digest for entry in self._deployments.machine.quarantine}
                if known:
                    self._deployments.lift_quarantine([command.digest])
                self._reply(command, Outcome.DONE, "" if known else "this digest was not in quarantine here")
            case RotateCertificate():
                self._renewals.rotate(command)
            case Decommission():
                self._farewell.leave(command)
            case _:
                raise ValueError(f"expected a command that the agent carries out itself, got {type(command).__name__}")

    def _reply(self, command: Command, outcome: Outcome, reason: str) -> None:
        self._replies.give(command.id, outcome, expires_at=command.expires_at, reason=reason)
