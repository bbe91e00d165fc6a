"""RoundLink over Flower's Grid: what travels in a round, in Flower's messages.

The same two records stand in `covey_agent/workers/training/messages.py`; the test that runs both against a real SuperLink keeps
them equal. Flower's own `send_and_receive` looks for answers every three seconds; here the loop asks when it likes.
"""

import logging
from collections.abc import Sequence

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid

from covey_server.federation.rounds import Answer
from covey_server.federation.weights import Weights

logger = logging.getLogger(__name__)
_ONLINE = "online"


class GridLink:
    """One ServerApp's way to its participants."""

    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        self._waiting: dict[str, str] = {}  # message id -> node

    def online(self) -> set[str]:
        """Node ids that are connected now."""
        return {str(node_id) for node_id in self._grid.get_node_ids()}

    def send(self, nodes: Sequence[str], *, run: str, number: int, weights: Weights, timeout_s: float) -> None:
        """One message to each node; answers to earlier rounds are no longer of interest."""
        content = RecordDict(
            {
                "round": ConfigRecord({"run": run, "round": number}),
                "weights": ArrayRecord({name: Array(value) for name, value in weights.items()}),
            }
        )
        messages = [
            Message(content, dst_node_id=int(node), message_type=MessageType.TRAIN, group_id=str(number), ttl=timeout_s) for node in nodes
        ]
        pushed = list(self._grid.push_messages(messages))
        self._waiting = {ident: node for ident, node in zip(pushed, nodes, strict=True) if ident}

    def collect(self) -> list[Answer]:
        """Answers that have come."""
        if not self._waiting:
            return []
        answers = []
        for message in self._grid.pull_messages(list(self._waiting)):
            # A node that went away answers through the SuperLink, so its own id is only in what it was asked.
            node = self._waiting.pop(message.metadata.reply_to_message_id, None)
            if node is None:
                continue
            if message.has_error():
                logger.warning("node %s did not answer: %s", node, message.error.reason)
                continue  # silence: nobody can say whether anything left it
            answers.append(_parse(node, message.content))
        return answers


def _parse(node: str, content: RecordDict) -> Answer:
    told = content.get("answer")
    if not isinstance(told, ConfigRecord) or told.get("outcome") not in {"trained", "refused", "withheld"}:
        return Answer(node=node, trained=True, reason="the answer is malformed")  # an unusable contribution, not a refusal
    if told["outcome"] == "withheld":  # something of this round may have left it before: not a refusal either
        return Answer(node=node, trained=True, reason=f"withheld: {told.get('reason', '')}"[:500])
    seconds = told.get("seconds", 0.0)
    if told["outcome"] == "refused":
        return Answer(node=node, trained=False, reason=str(told.get("reason", ""))[:500])
    arrays = content.get("change")
    change: Weights = {}
    if isinstance(arrays, ArrayRecord):
        change = {name: np.asarray(array.numpy(), dtype=np.float32) for name, array in arrays.items()}
    return Answer(node=node, trained=True, change=change, seconds=float(seconds) if isinstance(seconds, int | float) else 0.0)
