"""What one part must hear of another: routes messages, workers' news and changes, and puts together the reported state."""

import logging

from covey_agent import __version__
from covey_agent.adapters.slot_files import SlotFiles
from covey_agent.core.jobs import InferWindow
from covey_agent.core.machine import IN_FLIGHT, Deployment, serving_slot
from covey_agent.core.policy import policy_hash
from covey_agent.core.slots import SLOTS, report_slot
from covey_agent.daemon.commands import Commands
from covey_agent.daemon.deployments import KEY_UNTOLD, RESULTS, Deployments
from covey_agent.daemon.health import HealthHook
from covey_agent.daemon.heartbeat import Heartbeat
from covey_agent.daemon.kit import Kit
from covey_agent.daemon.live import Live, LiveFile
from covey_agent.daemon.meter import Meter
from covey_agent.daemon.orders import Orders
from covey_agent.daemon.probing import Probing
from covey_agent.daemon.readings import Readings
from covey_agent.daemon.renewals import Renewals
from covey_agent.daemon.replies import Replies
from covey_agent.daemon.reports import Reports
from covey_agent.daemon.runs import Runs
from covey_agent.daemon.serving import Serving
from covey_agent.daemon.upgrades import Upgrades
from covey_agent.errors import UsageError
from covey_agent.inbox import MessageArrived
from covey_agent.settings import load_consent
from covey_contract.errors import ContractError
from covey_contract.messages import DeploymentReport, DeploymentState, Priority, Profile, Reported
from covey_contract.topics import Channel, parse_topic

logger = logging.getLogger(__name__)


class Hub:
    """Knows all parts; `app.py` sets them once and then begins."""

    deployments: Deployments
    serving: Serving
    orders: Orders
    probing: Probing
    runs: Runs
    replies: Replies
    commands: Commands
    readings: Readings
    meter: Meter
    health: HealthHook
    heartbeat: Heartbeat
    upgrades: Upgrades
    reports: Reports
    renewals: Renewals

    def __init__(self, kit: Kit, slots: SlotFiles, live: LiveFile) -> None:
        self._kit = kit
        self._slots = slots
        self._live = live
        self._connected = False
        self._connection_since = kit.clock.now_ms()
        self._connection = "connecting"
        self._outages = 0

    # -- the connection --

    def connected(self, certificate: str) -> None:
        """A connection began by this certificate: say everything that the server may have missed, oldest duty first."""
        logger.info("connected to the broker")
        self._kit.clock.confirm()
        self._outages = 0
        self._note_connection(connected=True, reason="")
        self.renewals.connected(certificate)
        self.reports.connected()
        self.replies.connected()
        self.readings.connected()
        self.deployments.connected()

    def disconnected(self, reason: str) -> None:
        """No connection; local service goes on."""
        self._outages += 1
        (logger.warning if self._outages == 1 else logger.debug)("not connected to the broker: %s", reason)
        self.reports.disconnected()
        self.readings.disconnected()
        self.renewals.disconnected()
        self.deployments.disconnected()
        self._note_connection(connected=False, reason=reason)

    def begun(self) -> None:
        """Everything has begun."""
        self._write_live()
        self.heartbeat.begin()

    def stopped(self) -> None:
        """The agent ends."""
        self._live.remove()

    def message_came(self, message: MessageArrived) -> None:
        """One message; one that is not the contract's is logged and dropped."""
        try:
            topic = parse_topic(message.topic)
        except ContractError as exc:
            logger.warning("a message was refused: %s", exc)
            return
        if topic.device != self._kit.identity.file.device:
            logger.warning("a message for another device was refused: %s", message.topic)
            return
        match topic.channel:
            case Channel.DESIRED:
                self.orders.message_came(message.payload)
            case Channel.COMMAND:
                self.commands.message_came(message.payload)
            case Channel.ACK:
                self.readings.ack_came(message.payload)
            case Channel.CERTIFICATE:
                self.renewals.answer_came(message.payload)
            case _:
                logger.warning("a message on %s was not expected", message.topic)

    # -- workers (Serving's listener) --

    def worker_ready(self, slot: str) -> None:
        """A worker has loaded its model."""
        self.deployments.worker_ready(slot)

    def worker_accepts(self, slot: str) -> None:
        """A worker accepts requests."""
        self.deployments.worker_accepts(slot)

    def worker_window(self, slot: str, window: InferWindow) -> None:
        """A worker reported."""
        if window.requests or window.rejected or window.labelled:
            note = self._slots.note(slot)
            self.meter.window_came(window, model=note.model if note else "", version=note.version if note else 0)
        self.deployments.worker_window(slot, window)

    def worker_ended(self, slot: str, reason: str) -> None:
        """A worker died."""
        self.deployments.worker_ended(slot, reason)

    # -- changes (the parts' audience) --

    def state_changed(self) -> None:
        """The full state is to be reported."""
        self.reports.changed()
        self._write_live()

    def progress_made(self) -> None:
        """A download went on."""
        self.reports.progressed()

    def deployment_changed(self, deployment: Deployment, state: DeploymentState) -> None:
        """A deployment entered a state: one reading of the device's history."""
        values: dict[str, int | float | str] = {
            "deployment": deployment.id,
            "model": deployment.model,
            "version": deployment.version,
            "state": state.value,
        }
        if deployment.variant:
            values["variant"] = deployment.variant
        if deployment.fetched:
            values |= {"fetched": deployment.fetched, "bytes_received": deployment.bytes_received}
        if deployment.reason:
            values["reason"] = deployment.reason
        if deployment.rollback_ms is not None:
            values["rollback_ms"] = deployment.rollback_ms
        if state in RESULTS:
            self.readings.add("deployment", values, priority=Priority.RESULT, settles=KEY_UNTOLD)
        else:
            self.readings.add("deployment", values)

    def deployment_ended(self) -> None:
        """There is room for the next deployment."""
        self.orders.reconsider()

    def alarm_raised(self, what: str, detail: str) -> None:
        """Something needs a look."""
        logger.warning("alarm %s: %s", what, detail)
        self.readings.add("alarm", {"what": what, "detail": detail}, priority=Priority.ALARM)

    def is_busy(self) -> bool:
        """Whether a deployment or a round is under way."""
        return self.deployments.machine.state in IN_FLIGHT or bool(self.runs.training)

    def about_serving(self) -> dict[str, str]:
        """What serves now, as the health hook is told it."""
        machine = self.deployments.machine
        slot = serving_slot(machine)
        note = self._slots.note(slot) if slot else None
        return {
            "COVEY_DEVICE": self._kit.identity.file.device,
            "COVEY_STATE_DIR": str(self._kit.state_dir),
            "COVEY_SLOT": slot,
            "COVEY_MODEL": note.model if note else "",
            "COVEY_VERSION": str(note.version) if note else "",
            "COVEY_VARIANT": note.variant if note else "",
            "COVEY_DEPLOYMENT_STATE": machine.state.value,
        }

    # -- the reported state --

    def build_report(self, generation: int) -> Reported:
        """Everything that the server should know now."""
        machine = self.deployments.machine
        notes = {slot: self._slots.note(slot) for slot in SLOTS}
        is_device = self._kit.identity.file.profile is Profile.DEVICE
        accepting = self.serving.accepting_slot
        return Reported(
            generation=generation,
            agent_version=__version__,
            profile=self._kit.identity.file.profile,
            at=self._kit.clock.now_ms(),
            desired_generation=max(self.orders.floor, machine.deployment.generation if machine.deployment else 0),
            active_slot=serving_slot(machine),
            serving=bool(accepting),
            slots=[report_slot(slot, note) for slot, note in notes.items()] if is_device else [],
            deployment=_report_deployment(machine.deployment, machine.state) if machine.deployment else None,
            quarantine=list(machine.quarantine),
            capabilities=self.probing.capabilities,
            policy_hash=self._policy_hash(),
            training=self.runs.training,
            boot=self._kit.boot,
            certificate=self.renewals.serial,
        )

    def _policy_hash(self) -> str:
        try:
            return policy_hash(load_consent(self._kit.state_dir).policy)
        except UsageError as exc:
            logger.warning("the policy is unreadable, so nothing will be trained: %s", exc)
            return ""

    def _note_connection(self, *, connected: bool, reason: str) -> None:
        if connected != self._connected:
            self._connection_since = self._kit.clock.now_ms()
        self._connected, self._connection = connected, reason
        self._write_live()

    def _write_live(self) -> None:
        live = Live(
            pid=self._kit.pid,
            boot=self._kit.boot,
            connected=self._connected,
            since=self._connection_since,
            accepting_slot=self.serving.accepting_slot,
            training=self.runs.training,
            connection=self._connection,
            version=__version__,
        )
        self._live.write(live)
        self.heartbeat.changed(live, meant_to_serve=serving_slot(self.deployments.machine))


def _report_deployment(deployment: Deployment, state: DeploymentState) -> DeploymentReport:
    return DeploymentReport(
        deployment=deployment.id,
        model=deployment.model,
        version=deployment.version,
        state=state,
        reason=deployment.reason,
        variant=deployment.variant,
        variant_reason=deployment.variant_reason,
        started_at=deployment.started_at,
        changed_at=deployment.changed_at,
        chunks_done=deployment.chunks_done,
        chunks_total=deployment.chunks_total,
        bytes_received=deployment.bytes_received,
        rollback_ms=deployment.rollback_ms,
    )
