"""The daemon: the only place where everything is wired, and the event loop.

    Outside (broker, children, signals) -> inbox -> one event at a time -> parts -> ports

Boot needs no network: the proven slot is served first, then the broker is looked for. Everything that a part does comes from an
event or a timer, on this one thread.
"""

import logging
import os
import queue
import random
import secrets
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from covey_agent import __version__
from covey_agent.adapters.children import ProcessChildren
from covey_agent.adapters.clock import SystemClock
from covey_agent.adapters.fingerprint import read_fingerprint
from covey_agent.adapters.leaving import finish_leaving, refuse_decommissioned
from covey_agent.adapters.ledger_file import LEDGER_NAME, LedgerFile
from covey_agent.adapters.lock import StateLock
from covey_agent.adapters.mqtt_paho import PahoBroker
from covey_agent.adapters.notify import ServiceNotifier
from covey_agent.adapters.reserve import Reserve
from covey_agent.adapters.slot_files import SlotFiles
from covey_agent.adapters.sockets import ListeningSockets
from covey_agent.adapters.store_readings import SqliteReadings
from covey_agent.adapters.store_sqlite import DATABASE_NAME, Database, SqliteState, open_database
from covey_agent.adapters.system_metrics import SystemMetrics
from covey_agent.core.backoff import reconnect_backoff
from covey_agent.core.privacy import epsilon_of
from covey_agent.core.walltime import ClockState
from covey_agent.daemon.aftercare import Aftercare
from covey_agent.daemon.commands import Commands
from covey_agent.daemon.deployments import Deployments
from covey_agent.daemon.farewell import Farewell
from covey_agent.daemon.health import HealthHook
from covey_agent.daemon.heartbeat import Heartbeat, Notifier
from covey_agent.daemon.hub import Hub
from covey_agent.daemon.kit import Kit
from covey_agent.daemon.live import LiveFile
from covey_agent.daemon.meter import Meter
from covey_agent.daemon.nursery import Nursery
from covey_agent.daemon.orders import Orders
from covey_agent.daemon.probing import Probing
from covey_agent.daemon.readings import Readings
from covey_agent.daemon.renewals import Renewals
from covey_agent.daemon.replies import Replies
from covey_agent.daemon.reports import Reports, status_message
from covey_agent.daemon.runs import Runs
from covey_agent.daemon.serving import Serving
from covey_agent.daemon.staging import Staging
from covey_agent.daemon.timers import Timers
from covey_agent.daemon.upgrades import Upgrades
from covey_agent.daemon.verifying import Verifier
from covey_agent.daemon.watch import Watch
from covey_agent.errors import StoreError
from covey_agent.identity import Identity, load_identity
from covey_agent.inbox import (
    RESTART,
    ActionDue,
    BrokerConnected,
    BrokerLost,
    ChildEnded,
    ChildSpoke,
    InboxEvent,
    MessageArrived,
    Post,
    StopAsked,
)
from covey_agent.ports import Broker, Children, Clock, Sockets
from covey_agent.settings import Settings, load_consent, load_settings
from covey_contract.ids import DeviceId
from covey_contract.messages import Presence, Profile, Scalar
from covey_contract.topics import Channel, device_subscriptions, device_topic

logger = logging.getLogger(__name__)
KEY_TIME = "time"  # the floor of the clock
TIME_INTERVAL_S = 3600.0
DRAIN_GRACE_S = 10.0


@dataclass(frozen=True, slots=True)
class Outside:
    """What lies outside the process, for tests that bring their own."""

    broker: Broker
    children: Callable[[Post], Children]
    clock: Clock


def run_agent(state_dir: Path, environment: Mapping[str, str], notifier: Notifier | None = None, *, may_restart: bool = False) -> bool:
    """Run until SIGTERM or SIGINT, or, where somebody will start it anew, SIGHUP; True: that was asked for.

    Raises CoveyAgentError if it cannot start.
    """
    settings = load_settings(state_dir, environment)
    refuse_decommissioned(state_dir)
    identity = load_identity(state_dir).through(settings.broker.host, settings.broker.port)
    lock = StateLock.acquire(state_dir / "agent.lock")
    reserve = Reserve(state_dir / "reserve")
    database = _open_database(state_dir / DATABASE_NAME, reserve)
    try:
        sockets = ListeningSockets.open(state_dir / "run", tcp_port=settings.inference.tcp_port)
        agent = build_agent(state_dir, settings, identity, database=database, sockets=sockets, notifier=notifier, may_restart=may_restart)
        reserve.fill()
        for number in (signal.SIGTERM, signal.SIGINT, *([signal.SIGHUP] if may_restart else [])):
            signal.signal(number, agent.stop_on_signal)
        signal.signal(signal.SIGUSR1, agent.renew_on_signal)
        agent.run()
        sockets.close()
    finally:
        database.close()
        finish_leaving(state_dir)  # under the lock: nobody starts while it wipes
        lock.release()
    refuse_decommissioned(state_dir)
    return agent.restart_asked


def _open_database(path: Path, reserve: Reserve) -> Database:
    try:
        return open_database(path)
    except StoreError as exc:
        if not reserve.give_up():
            raise
        logger.warning("%s: trying again with the room that was held back", exc)
    return open_database(path)


def build_agent(
    state_dir: Path,
    settings: Settings,
    identity: Identity,
    *,
    database: Database,
    sockets: Sockets,
    notifier: Notifier | None = None,
    may_restart: bool = False,
    outside: Outside | None = None,
) -> "Agent":
    """Wire everything; nothing starts yet. `outside` takes the place of the real broker, children and clock."""
    inbox: queue.SimpleQueue[InboxEvent] = queue.SimpleQueue()
    store = SqliteState(database, LedgerFile(state_dir / LEDGER_NAME))
    clock = outside.clock if outside else SystemClock(int(store.load(KEY_TIME) or b"0"))
    timers = Timers(clock.monotonic)
    boot = secrets.token_hex(8)
    broker = outside.broker if outside else _make_broker(identity, settings, inbox.put, clock, boot=boot)
    children = outside.children(inbox.put) if outside else ProcessChildren(inbox.put)
    kit = Kit(
        state_dir=state_dir,
        identity=identity,
        settings=settings,
        boot=boot,
        pid=os.getpid(),
        clock=clock,
        random=random.random,
        store=store,
        nursery=Nursery(children, timers),
        timers=timers,
        broker=broker,
        post=inbox.put,
        may_restart=may_restart,
    )
    slots = SlotFiles(state_dir)
    hub = Hub(kit, slots, LiveFile(state_dir / "run"))
    hub.heartbeat = Heartbeat(kit, notifier or ServiceNotifier())
    _wire(hub, kit, slots, store=store, database=database, sockets=sockets)
    return Agent(kit, hub, inbox)


def _wire(hub: Hub, kit: Kit, slots: SlotFiles, *, store: SqliteState, database: Database, sockets: Sockets) -> None:
    hub.readings = Readings(kit, SqliteReadings(database, store))
    hub.meter = Meter(kit, hub.readings, read_system=_system_reader(kit))
    hub.reports = Reports(kit, hub.build_report)
    hub.replies = Replies(kit, store)
    hub.renewals = Renewals(kit, replies=hub.replies, audience=hub)
    hub.serving = Serving(kit, sockets, slots)
    hub.probing = Probing(kit, fingerprint=read_fingerprint(), known=hub.state_changed)
    hub.upgrades = Upgrades(kit, replies=hub.replies, alarm=hub.alarm_raised, is_busy=hub.is_busy)
    hub.health = HealthHook(kit, about=hub.about_serving, alarm=hub.alarm_raised)
    watch = Watch(kit, slots, hub.health)
    staging = Staging(kit, slots, hub.probing, floor=lambda: hub.orders.floor)
    aftercare = Aftercare(kit, slots)
    hub.deployments = Deployments(kit, slots, serving=hub.serving, staging=staging, watch=watch, aftercare=aftercare)
    verifier = Verifier(kit)
    hub.orders = Orders(kit, slots, hub.deployments, verifier=verifier, audience=hub)
    hub.runs = Runs(
        kit,
        ledger=store,
        replies=hub.replies,
        readings=hub.readings,
        audience=hub,
        consent=lambda: load_consent(kit.state_dir),
        epsilon_of=epsilon_of,
    )
    hub.commands = Commands(
        kit,
        replies=hub.replies,
        runs=hub.runs,
        deployments=hub.deployments,
        renewals=hub.renewals,
        farewell=Farewell(kit, hub.replies),
        verifier=verifier,
        upgrades=hub.upgrades,
        audience=hub,
    )
    hub.serving.listen(hub)
    hub.deployments.listen(hub)
    staging.listen(hub.deployments, hub.orders.generation_verified)
    watch.listen(hub.deployments.happened, hub.deployments.evidence_found)
    aftercare.listen(hub.deployments.late_evidence_found)


def _make_broker(identity: Identity, settings: Settings, post: Post, clock: Clock, *, boot: str) -> Broker:
    device = DeviceId(identity.file.device)
    topic = device_topic(device, Channel.STATUS)
    return PahoBroker(
        identity.address,
        subscriptions=device_subscriptions(device),
        last_words=lambda: status_message(topic, Presence.OFFLINE, boot=boot, at=clock.now_ms()),
        post=post,
        backoff=reconnect_backoff(settings.broker.reconnect_spread_s),
        random=random.random,
        monotonic=clock.monotonic,
    )


def _system_reader(kit: Kit) -> Callable[[], dict[str, Scalar]]:
    return SystemMetrics(kit.state_dir).read


class Agent:
    """The event loop."""

    def __init__(self, kit: Kit, hub: Hub, inbox: "queue.SimpleQueue[InboxEvent]") -> None:
        self._kit = kit
        self._hub = hub
        self._inbox = inbox
        self._stopping = False
        self.restart_asked = False

    def stop_on_signal(self, number: int, _frame: FrameType | None) -> None:
        """A signal handler: only puts an event."""
        self._inbox.put(StopAsked(signal.Signals(number).name))

    def renew_on_signal(self, _number: int, _frame: FrameType | None) -> None:
        """A signal handler: `covey-agent identity renew` asks for a new certificate."""
        self._inbox.put(ActionDue(self._hub.renewals.force))

    def run(self) -> None:
        """Boot, handle events until asked to stop, say goodbye."""
        self.boot()
        while not self._stopping:
            self.turn(wait_s=self._kit.timers.wait_s())
        self._shut_down()

    def boot(self) -> None:
        """Serve first; the network comes when it comes."""
        file = self._kit.identity.file
        logger.info("agent %s of %s (%s) starts", __version__, file.device, file.profile.value)
        self._guard(self._begin)

    def turn(self, *, wait_s: float | None) -> bool:
        """Wait for an event, at most so long, and handle it and every timer that is due. False: nothing happened."""
        happened = True
        try:
            event = self._inbox.get(timeout=wait_s)
        except queue.Empty:
            happened = False
        else:
            self._guard(lambda: self._handle(event))
        while not self._stopping and (action := self._kit.timers.pop_due()) is not None:
            self._guard(action)
            happened = True
        return happened

    def _begin(self) -> None:
        self._keep_time()
        if self._kit.identity.file.profile is Profile.DEVICE:
            self._guard(self._hub.deployments.boot)
        self._guard(self._kit.broker.start)
        self._guard(self._hub.runs.boot)
        self._hub.meter.begin()
        self._hub.orders.reconsider()
        self._hub.probing.begin()
        self._hub.health.begin()
        self._guard(self._hub.renewals.begin)
        self._hub.begun()
        self._guard(self._hub.upgrades.begin)

    def _handle(self, event: InboxEvent) -> None:
        match event:
            case BrokerConnected():
                self._hub.connected(event.certificate)
            case BrokerLost():
                self._hub.disconnected(event.reason)
            case MessageArrived():
                self._hub.message_came(event)
            case ChildSpoke() | ChildEnded():
                self._kit.nursery.dispatch(event)
            case ActionDue():
                event.action()
            case StopAsked():
                self.restart_asked = event.signal == RESTART
                logger.info("%s: stopping%s", event.signal, " to start anew" if self.restart_asked else "")
                self._stopping = True

    def _guard(self, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception:  # the loop's top: a bug in one step must not stop the device from serving
            logger.exception("an event could not be handled")

    def _keep_time(self) -> None:
        """Persist the latest known time, so that a start without a clock does not begin in 1970. One in doubt would be for ever."""
        state = self._kit.clock.state
        if state is not ClockState.SET:
            logger.warning("the clock is %s: %s; nothing is dropped for its age", state.value, self._kit.clock.now().isoformat())
        try:
            if state is ClockState.SET:
                self._kit.store.save({KEY_TIME: str(self._kit.clock.now_ms()).encode("ascii")}, durable=False)
        except StoreError as exc:
            logger.warning("the time cannot be noted: %s", exc)
        self._kit.timers.set("keep-time", TIME_INTERVAL_S, self._keep_time)

    def _shut_down(self) -> None:
        if not self.restart_asked:  # the service goes on
            self._guard(self._hub.heartbeat.stopping)
        self._guard(self._hub.meter.close)
        self._guard(lambda: self._kit.nursery.stop_all(grace_s=DRAIN_GRACE_S))
        self._guard(self._hub.readings.close)
        self._guard(self._kit.broker.stop)
        self._guard(self._hub.stopped)
        logger.info("stopped")
