"""Signatures of orders that the agent itself acts on: the idle process has no cryptography, so a child verifies them, one by one."""

import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from covey_agent.core.backoff import DEPLOY_RETRY
from covey_agent.core.jobs import ChildEvent, Rejected, Verified, VerifyFailed, VerifyJob
from covey_agent.daemon.kit import Kit
from covey_agent.ports import Child

logger = logging.getLogger(__name__)
TIMEOUT_S = 120.0
MAX_TRIES = 4
MAX_WAITING = 16  # a flood of orders is not worth a queue without end


class Verdict(Enum):
    """What became of the question."""

    VERIFIED = "verified"
    REJECTED = "rejected"  # forged, expired, or for somebody else
    UNKNOWN = "unknown"  # it could not be found out


@dataclass(slots=True)
class Question:
    """One order to verify. Two questions with one key are the same: the first one's answer will do."""

    key: str
    order: bytes
    answer: Callable[[Verdict, str], None]
    tries: int = 0


class Verifier:
    """A queue of questions and at most one child."""

    def __init__(self, kit: Kit) -> None:
        self._kit = kit
        self._waiting: deque[Question] = deque()
        self._asked: Question | None = None
        self._child: Child | None = None

    def ask(self, key: str, order: bytes, answer: Callable[[Verdict, str], None]) -> None:
        """Verify `order`; `answer` is called with the verdict and a reason."""
        if any(question.key == key for question in self._waiting) or (self._asked is not None and self._asked.key == key):
            return
        if len(self._waiting) >= MAX_WAITING:
            logger.warning("too many orders wait to be verified; %s is dropped", key)
            return
        self._waiting.append(Question(key, order, answer))
        self._next()

    def child_spoke(self, child: Child, event: ChildEvent) -> None:
        """The verdict."""
        match event:
            case Verified():
                self._settle(Verdict.VERIFIED, "")
            case Rejected():
                self._settle(Verdict.REJECTED, event.reason)
            case VerifyFailed():
                self._try_again(event.reason)
            case _:
                logger.warning("a verify child sent an unexpected %s", type(event).__name__)

    def child_ended(self, child: Child, reason: str, *, clean: bool) -> None:
        """Gone; if it said nothing, try again."""
        if self._child is child:
            self._child = None
            if self._asked is not None:
                self._try_again(f"the verify child {reason}")
        self._next()

    def _next(self) -> None:
        if self._child is not None or self._asked is not None or not self._waiting:
            return
        self._asked = self._waiting.popleft()
        self._start()

    def _start(self) -> None:
        if self._asked is None:
            return
        job = VerifyJob(state_dir=str(self._kit.state_dir), broker=self._kit.identity.broker, order=self._asked.order)
        self._child = self._kit.nursery.start(self, "verify", job, deadline_s=TIMEOUT_S)

    def _try_again(self, reason: str) -> None:
        question = self._asked
        if question is None:
            return
        question.tries += 1
        if question.tries >= MAX_TRIES:
            self._settle(Verdict.UNKNOWN, reason)
            return
        logger.info("%s could not be verified yet: %s", question.key, reason)
        self._child = None
        self._kit.timers.set("verify-retry", DEPLOY_RETRY.delay_s(question.tries, self._kit.random), self._start)

    def _settle(self, verdict: Verdict, reason: str) -> None:
        question, self._asked = self._asked, None
        if question is not None:
            question.answer(verdict, reason)
        self._kit.soon(self._next)
