"""Flower's messages to and from the plain values of a round. What travels, and nothing else, is in this file.

A round's message:  config "round" = {run, round},  arrays "weights"
Its reply:          config "answer" = {outcome: trained | refused | withheld, reason, steps, seconds},  arrays "change" only if trained
"""

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

from covey_agent.workers.training.rounds import Refused, RoundTrainer, Trained, Withheld
from covey_agent.workers.training.weights import Weights


def answer_message(message: Message, trainer: RoundTrainer) -> Message:
    """The reply to one message, whatever it holds."""
    parsed = _parse(message)
    answer = trainer.answer(*parsed) if parsed else Refused("the message is not a round")
    return Message(_content(answer), reply_to=message)


def _parse(message: Message) -> tuple[str, int, Weights] | None:
    if message.has_error() or "round" not in message.content or "weights" not in message.content:
        return None
    config, arrays = message.content["round"], message.content["weights"]
    if not isinstance(config, ConfigRecord) or not isinstance(arrays, ArrayRecord):
        return None
    run, number = config.get("run"), config.get("round")
    if not isinstance(run, str) or not isinstance(number, int):
        return None
    weights = {name: np.asarray(array.numpy(), dtype=np.float32) for name, array in arrays.items()}
    return run, number, weights


def _content(answer: Trained | Refused | Withheld) -> RecordDict:
    match answer:
        case Trained(change, steps, seconds):
            told = {"outcome": "trained", "reason": "", "steps": steps, "seconds": seconds}
            return RecordDict({"answer": ConfigRecord(told), "change": ArrayRecord({name: Array(value) for name, value in change.items()})})
        case Refused(reason):
            return RecordDict({"answer": ConfigRecord({"outcome": "refused", "reason": reason, "steps": 0, "seconds": 0.0})})
        case Withheld(reason):
            return RecordDict({"answer": ConfigRecord({"outcome": "withheld", "reason": reason, "steps": 0, "seconds": 0.0})})
