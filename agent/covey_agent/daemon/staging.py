"""The deploy and check children of the running deployment: starts them, and translates what they say into the machine's events."""

import logging
from collections.abc import Callable
from typing import Protocol

from covey_agent.adapters.slot_files import SlotFiles
from covey_agent.core.jobs import (
    CheckFailed,
    CheckJob,
    CheckPassed,
    ChildEvent,
    DeployFailed,
    DeployJob,
    DeployRefused,
    FetchProgress,
    Staged,
    VariantChosen,
    VariantsMeasured,
)
from covey_agent.core.machine import Deployment, Event, Happened, Machine
from covey_agent.daemon.kit import Kit
from covey_agent.daemon.latencies import Latencies
from covey_agent.daemon.probing import Probing
from covey_agent.ports import Child

logger = logging.getLogger(__name__)


class Outcome(Protocol):
    """Whom staging tells."""

    def happened(self, happened: Happened) -> None: ...

    def evidence_found(self, reason: str) -> None: ...


class Staging:
    """At most one of the two children runs."""

    def __init__(self, kit: Kit, slots: SlotFiles, probing: Probing, *, floor: Callable[[], int]) -> None:
        self._kit = kit
        self._slots = slots
        self._probing = probing
        self._latencies = Latencies(kit, lambda: probing.fingerprint)
        self._floor = floor  # lowest generation still accepted
        self._outcome: Outcome | None = None
        self._order_verified: Callable[[int], None] = lambda _: None
        self._child: Child | None = None
        self._generation = 0
        self.failures = 0  # in a row

    def listen(self, outcome: Outcome, order_verified: Callable[[int], None]) -> None:
        """Tell the deployments what happened, and the orders that a child has verified a generation."""
        self._outcome = outcome
        self._order_verified = order_verified

    def start_deploy(self, deployment: Deployment, *, order: bytes, machine: Machine) -> None:
        """Start the deploy child as soon as it is known what this machine can run."""
        self._generation = deployment.generation
        self._probing.when_known(lambda: self._start_deploy(deployment, order, machine))

    def start_check(self, deployment: Deployment) -> None:
        """Start the check child on the slot that was filled."""
        self.stop()
        settings = self._kit.settings.deploy
        job = CheckJob(slot_dir=str(self._slots.path(deployment.slot)))
        self._start("check", job, deadline_s=settings.check_timeout_s)

    def stop(self) -> None:
        """Stop either child, and hear no more of it."""
        self._probing.forget_waiting()
        if self._child is not None:
            self._kit.nursery.disown(self._child, "no longer needed")
            self._child = None

    def child_spoke(self, child: Child, event: ChildEvent) -> None:
        """An event of either child."""
        match event:
            case VariantChosen():
                self._order_verified(self._generation)
                self._tell(Happened(Event.VARIANT_CHOSEN, reason=event.reason, variant=event.variant, artifact=event.artifact))
            case VariantsMeasured():
                self._latencies.keep(event.model, event.latencies)
            case FetchProgress():
                self.failures = 0
                progress = Happened(
                    Event.PROGRESSED,
                    chunks_done=event.chunks_done,
                    chunks_total=event.chunks_total,
                    bytes_received=event.bytes_received,
                )
                self._tell(progress)
            case Staged():
                self._finish(child, Happened(Event.FETCHED, variant=event.variant, artifact=event.artifact, fetched=event.fetched))
            case DeployRefused():
                self._finish(child, Happened(Event.DEPLOY_REFUSED, reason=event.reason))
            case DeployFailed():
                self.failures += 1
                self._finish(child, Happened(Event.DEPLOY_FAILED, reason=event.reason))
            case CheckPassed():
                self._finish(child, Happened(Event.CHECK_PASSED))
            case CheckFailed():
                self._release(child)
                self._outcome_or_fail().evidence_found(event.reason)
            case _:
                logger.warning("a %s child sent an unexpected %s", child.program, type(event).__name__)
        if child.program == "deploy" and self._child is child:
            self._kit.nursery.extend(child, self._kit.settings.deploy.progress_timeout_s)

    def child_ended(self, child: Child, reason: str, *, clean: bool) -> None:
        """Either child is gone; without an answer, that is one."""
        if self._child is not child:
            return
        self._child = None
        without = f"the {child.program} child {reason}{' without an answer' if clean else ''}"
        if child.program == "check":
            self._outcome_or_fail().evidence_found(without)
        else:
            self.failures += 1
            self._tell(Happened(Event.DEPLOY_DIED, reason=without))

    def _start_deploy(self, deployment: Deployment, order: bytes, machine: Machine) -> None:
        self.stop()
        settings = self._kit.settings.deploy
        job = DeployJob(
            state_dir=str(self._kit.state_dir),
            broker=self._kit.identity.broker,
            order=order,
            slot_dir=str(self._slots.path(deployment.slot)),
            active_artifact=self._slots.artifact(machine.committed),
            capabilities=self._probing.capabilities,
            quarantine=[entry.digest for entry in machine.quarantine],
            reserve_bytes=settings.reserve_mb * 1024 * 1024,
            min_generation=self._floor(),
            link=self._kit.settings.link_rules(),
            measured=self._latencies.of(deployment.model),
            trial_bytes=int(settings.measure_mb * 1e6),
        )
        self._start("deploy", job, deadline_s=settings.progress_timeout_s)

    def _start(self, program: str, job: DeployJob | CheckJob, *, deadline_s: float) -> None:
        limit = self._kit.settings.deploy.memory_limit_mb
        self._child = self._kit.nursery.start(self, program, job, deadline_s=deadline_s, memory_limit_mb=limit)

    def _finish(self, child: Child, happened: Happened) -> None:
        self._release(child)
        self._tell(happened)

    def _release(self, child: Child) -> None:
        """It has given its final answer; how it ends is no news. It is killed if it does not end soon."""
        if self._child is child:
            self._child = None
        self._kit.nursery.extend(child, 10.0)

    def _tell(self, happened: Happened) -> None:
        self._outcome_or_fail().happened(happened)

    def _outcome_or_fail(self) -> Outcome:
        if self._outcome is None:
            raise RuntimeError("nobody listens to the staging")
        return self._outcome
