"""What a participant answers, and what the round loop makes of it, in Flower's own messages."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import pytest

from covey_agent.workers.training.rounds import Refused, RoundTrainer, Trained, Withheld
from covey_server.federation.rounds import Answer

pytestmark = [pytest.mark.flower, pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")]


@pytest.fixture(autouse=True)
def task_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    from flwr.supercore.task_identity import TaskIdentity

    for name in ("_run_id", "_task_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


@dataclass
class Trainer:
    """Gives one answer, whatever it is asked."""

    gives: Trained | Refused | Withheld

    def answer(self, *_: Any) -> Trained | Refused | Withheld:
        return self.gives


@dataclass
class OneNode:
    """A Grid of one participant."""

    trainer: Trainer
    replies: list[Any] = field(default_factory=list)

    def push_messages(self, messages: Iterable[Any]) -> list[str]:
        from covey_agent.workers.training.messages import answer_message

        for message in messages:
            message.metadata.__dict__.update(_message_id="m1", _run_id=1)
            self.replies.append(answer_message(message, cast(RoundTrainer, self.trainer)))
        return ["m1"]

    def pull_messages(self, _ids: Iterable[str]) -> list[Any]:
        return self.replies


def exchange(gives: Trained | Refused | Withheld) -> Answer:
    from covey_server.federation.grid import GridLink

    link = GridLink(cast(Any, OneNode(Trainer(gives))))
    link.send(["7"], run="r1", number=1, weights={"w": np.zeros(2, np.float32)}, timeout_s=10.0)
    (answer,) = link.collect()
    return answer


def test_only_a_clear_refusal_is_taken_for_one() -> None:
    refused, withheld = exchange(Refused("over budget")), exchange(Withheld("trained here from other weights"))
    assert (refused.trained, refused.reason) == (False, "over budget")
    assert (withheld.trained, withheld.change) == (True, {})
    assert "other weights" in withheld.reason


def test_a_contribution_arrives_as_it_was_sent() -> None:
    change = np.array([0.5, -2.0], np.float32)
    answer = exchange(Trained({"w": change}, steps=3, seconds=1.5))
    assert (answer.trained, answer.reason, answer.seconds) == (True, "", 1.5)
    assert answer.change["w"].tobytes() == change.tobytes()
