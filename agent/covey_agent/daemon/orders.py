"""The desired state: takes what arrives, asks the plan what to do, and does it.

What arrives is unverified. It is looked at only to compare generations; see `core/plan.py` for what may happen before and what only
after a child has verified it.
"""

import logging
from collections.abc import Collection
from typing import TypeVar

import msgspec

from covey_agent.adapters.slot_files import SlotFiles
from covey_agent.core.machine import Deployment, Event, Happened
from covey_agent.core.plan import Current, NextStep, Step, Wanted, is_newer, next_steps
from covey_agent.daemon.deployments import KEY_ORDER, PERSIST_RETRY_S, Audience, Deployments
from covey_agent.daemon.kit import Kit
from covey_agent.daemon.verifying import Verdict, Verifier
from covey_agent.errors import StoreError
from covey_contract.codec import decode, decode_order
from covey_contract.errors import ContractError
from covey_contract.messages import Desired, Signed

logger = logging.getLogger(__name__)
KEY_DESIRED = "desired"
KEY_FLOOR = "floor"
KEY_ATTEMPTED = "attempted"
MAX_ATTEMPTED = 200  # deployment ids remembered
MAX_STEPS = 8
T = TypeVar("T")


class Stored(msgspec.Struct, frozen=True):
    """The latest desired state as it stands in the database."""

    order: bytes
    verified: bool


class Orders:
    """The latest desired state and what was done about it."""

    def __init__(self, kit: Kit, slots: SlotFiles, deployments: Deployments, *, verifier: Verifier, audience: Audience) -> None:
        self._kit = kit
        self._slots = slots
        self._deployments = deployments
        self._verifier = verifier
        self._audience = audience
        self._stored: Stored | None = None
        self._desired: Desired | None = None
        self._attempted: list[str] = _load(kit, KEY_ATTEMPTED, list[str]) or []
        self.floor: int = _load(kit, KEY_FLOOR, int) or 0  # the highest generation that a child has verified
        self._restore()

    def message_came(self, payload: bytes) -> None:
        """A desired state arrived (again: it is retained, so every connection brings it)."""
        try:
            desired = decode_order(decode(payload, Signed))
        except ContractError as exc:
            self._refuse_message(str(exc))
            return
        if not isinstance(desired, Desired) or desired.device != self._kit.identity.file.device:
            self._refuse_message("it is no desired state for this device")
            return
        if self._stored is not None and payload == self._stored.order:
            self.reconsider()
        elif is_newer(desired.generation, floor=self.floor, candidate=self._desired.generation if self._desired else 0):
            logger.info("desired state of generation %d arrived", desired.generation)
            self._stored, self._desired = Stored(order=payload, verified=False), desired
            self._keep()
            self.reconsider()
        else:
            logger.info("desired state of generation %d is not newer: ignored", desired.generation)

    def reconsider(self) -> None:
        """Do whatever the plan says, until there is nothing more to do now."""
        for _ in range(MAX_STEPS):
            if self._stored is None or self._desired is None:
                return
            steps = next_steps(self._current(), Wanted(desired=self._desired, verified=self._stored.verified))
            if not steps:
                return
            try:
                if not self._take(steps[0], self._stored, self._desired):
                    return
            except StoreError as exc:  # the same step is due as soon as the disk takes it
                logger.warning("%s must wait: %s", steps[0].step.value, exc)
                self._kit.timers.set("reconsider", PERSIST_RETRY_S, self.reconsider)
                return
        logger.error("the plan does not come to an end; a bug")

    def generation_verified(self, generation: int) -> None:
        """A child has verified the signature of the order with this generation."""
        if self._desired is None or self._stored is None or self._desired.generation != generation or self._stored.verified:
            return
        self._stored = Stored(order=self._stored.order, verified=True)
        self.floor = max(self.floor, generation)
        self._keep()

    def _take(self, step: NextStep, stored: Stored, desired: Desired) -> bool:
        """Take one step; whether to ask the plan again at once."""
        match step.step:
            case Step.VERIFY:
                self._verifier.ask(f"desired:{desired.generation}", stored.order, lambda verdict, why: self._judged(stored, verdict, why))
                return False
            case Step.LIFT_QUARANTINE:
                self._deployments.lift_quarantine(desired.released_from_quarantine)
            case Step.SUPERSEDE:
                self._deployments.happened(Happened(Event.SUPERSEDED, reason=step.reason))
            case Step.BEGIN:
                self._begin(Event.ORDERED, step, stored, desired)
            case Step.CONFIRM:
                self._begin(Event.ALREADY_RUNS, step, stored, desired)
            case Step.REFUSE:
                self._begin(Event.ORDER_REFUSED, step, stored, desired)
        return True

    def _begin(self, event: Event, step: NextStep, stored: Stored, desired: Desired) -> None:
        """The attempt is remembered in the same write as the machine's new state: once, and never lost."""
        release = desired.release
        if release is None:
            return
        self._attempted = [*self._attempted, desired.deployment][-MAX_ATTEMPTED:]
        deployment = Deployment(
            id=desired.deployment,
            generation=desired.generation,
            model=release.model,
            version=release.version,
            manifest=release.manifest,
            probation_s=desired.probation_s,
        )
        also = {KEY_ATTEMPTED: msgspec.json.encode(self._attempted), KEY_ORDER: stored.order}
        self._deployments.happened(Happened(event, reason=step.reason, deployment=deployment), also=also)

    def _judged(self, stored: Stored, verdict: Verdict, reason: str) -> None:
        if self._stored is not stored or self._desired is None:
            return  # a newer one came meanwhile
        if verdict is Verdict.VERIFIED:
            self.generation_verified(self._desired.generation)
            self.reconsider()
            return
        logger.warning("the desired state of generation %d is not obeyed: %s (%s)", self._desired.generation, verdict.value, reason)
        if verdict is Verdict.REJECTED:
            self._audience.alarm_raised("order_rejected", reason)
        # Forgotten, so that it does not stand in the way of a true one; a true one is retained and comes again.
        self._stored = self._desired = None
        self._keep()

    def _current(self) -> Current:
        machine = self._deployments.machine
        note = self._slots.note(machine.committed) if machine.committed else None
        return Current(
            profile=self._kit.identity.file.profile,
            machine=machine,
            committed_manifest=note.manifest if note else "",
            attempted=self._attempted,
            quarantine=quarantined(self._deployments),
        )

    def _keep(self) -> None:
        """The desired state and the floor as they are now, at once or as soon as the disk takes them. Should the device start before
        that, the broker delivers the order again, and it is verified again."""
        stored = None if self._stored is None else msgspec.json.encode(self._stored)
        try:
            self._kit.store.save({KEY_DESIRED: stored, KEY_FLOOR: msgspec.json.encode(self.floor)})
        except StoreError as exc:
            logger.debug("the desired state cannot be written: %s", exc)
            self._kit.timers.set("keep-desired", PERSIST_RETRY_S, self._keep)

    def _refuse_message(self, reason: str) -> None:
        logger.warning("a desired state was refused: %s", reason)

    def _restore(self) -> None:
        stored = _load(self._kit, KEY_DESIRED, Stored)
        if stored is None:
            return
        try:
            desired = decode_order(decode(stored.order, Signed))
        except ContractError:
            logger.exception("the stored desired state is unreadable; it comes again with the next connection")
            return
        if isinstance(desired, Desired):
            self._stored, self._desired = stored, desired


def quarantined(deployments: Deployments) -> Collection[str]:
    """The digests in quarantine."""
    return [entry.digest for entry in deployments.machine.quarantine]


def _load(kit: Kit, key: str, kind: type[T]) -> T | None:
    data = kit.store.load(key)
    if data is None:
        return None
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.DecodeError:
        logger.exception("the stored %s is unreadable", key)
        return None
