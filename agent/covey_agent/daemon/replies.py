"""Answers to commands: remembered durably, so that a repeated command gets the same answer and does nothing twice."""

from collections.abc import Mapping

from covey_agent.daemon.kit import Kit
from covey_agent.ports import CommandStore
from covey_contract.codec import encode
from covey_contract.limits import MAX_REASON_CHARS
from covey_contract.messages import Outcome, Reply, Scalar
from covey_contract.topics import Channel

KEEP_MS = 7 * 86400 * 1000  # after a command's expiry


class Replies:
    """Gives answers, and repeats those to commands that have not expired whenever a connection begins."""

    def __init__(self, kit: Kit, commands: CommandStore) -> None:
        self._kit = kit
        self._commands = commands

    def give(
        self, command: str, outcome: Outcome, *, expires_at: int, reason: str = "", values: Mapping[str, Scalar] | None = None
    ) -> None:
        """Remember, then send."""
        reply = Reply(id=command, outcome=outcome, at=self._kit.clock.now_ms(), reason=reason[:MAX_REASON_CHARS], values=dict(values or {}))
        payload = encode(reply)
        self._commands.save_reply(command, payload, expires_at=expires_at)
        self._send(payload)

    def repeat(self, command: str) -> bool:
        """Send the known answer again; False: this command is new."""
        payload = self._commands.find_reply(command)
        if payload is None:
            return False
        self._send(payload)
        return True

    def connected(self) -> None:
        """Whatever may have got lost is sent again."""
        now = self._kit.clock.now_ms()
        self._commands.forget_replies(max(0, now - KEEP_MS))
        for payload in self._commands.open_replies(now):
            self._send(payload)

    def _send(self, payload: bytes) -> None:
        self._kit.broker.publish(self._kit.topic(Channel.REPLY), payload)
