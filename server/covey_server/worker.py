"""The worker: MQTT in and out, delivery of artifacts, and everything that happens by itself (rollouts, runs, builds, renewals).

Threads: the gateway's (routes and commits), the outbox's, delivery's, paho's two; the main one ticks. Each tick is independent:
a fault in one is logged and the others go on.
"""

import logging
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from types import FrameType

from covey_server import outbox
from covey_server.access.idempotency import prune_idempotency_keys
from covey_server.access.logins import prune_logins
from covey_server.devices import certificates, farewell
from covey_server.devices.certificates import broker_rights
from covey_server.federation.ticks import RunKeeper
from covey_server.mqtt.gateway import Gateway
from covey_server.mqtt.link import BrokerLink
from covey_server.mqtt.publisher import OutboxPublisher
from covey_server.mqtt.router import Router
from covey_server.observability.service import store_counters
from covey_server.parts import Parts
from covey_server.releases.build import Builder
from covey_server.releases.delivery import Delivery
from covey_server.releases.deltas import DeltaMaker
from covey_server.rollouts import service as rollouts
from covey_server.telemetry import service as telemetry

logger = logging.getLogger(__name__)
_KEEP_SENT = timedelta(hours=6)


@dataclass
class _Tick:
    name: str
    every_s: float
    act: Callable[[], object]
    due: float = 0.0


@dataclass
class Worker:
    """One per server process that does the work; `run` returns when it is told to stop."""

    parts: Parts
    router: Router
    gateway: Gateway
    outbox: OutboxPublisher
    links: tuple[BrokerLink, BrokerLink]  # main, bulk
    delivery: Delivery
    builder: Builder
    deltas: DeltaMaker
    keeper: RunKeeper | None
    _newest_revocation: datetime | None = None
    _republished: int = 0  # connections of the main link when retained messages were last published anew
    _stop: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        """Work until SIGTERM or SIGINT."""
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGINT, self._on_signal)
        with self.parts.db.begin() as session:
            rollouts.republish_desired(session, self.parts.director)  # a broker that lost its retained messages gets them again
        for link in self.links:
            link.start()
        self.gateway.start(self.links[0])
        self.outbox.start()
        delivery = threading.Thread(target=self.delivery.run, name="delivery", daemon=True)
        delivery.start()
        try:
            self._tick_until_stopped()
        finally:
            self.delivery.stop()
            self.builder.close(self.parts)
            self.deltas.close()
            self.gateway.stop()
            self.outbox.stop()
            for link in self.links:
                link.stop()
            delivery.join(timeout=5)

    def _tick_until_stopped(self) -> None:
        ticks = self._ticks()
        while not self._stop.is_set():
            for tick in ticks:
                if time.monotonic() >= tick.due and not self._stop.is_set():
                    self._run_tick(tick)
            self._stop.wait(0.1)

    def _ticks(self) -> list[_Tick]:
        parts = self.parts
        ticks = [
            _Tick("rollouts", 0.5, lambda: rollouts.tick_rollouts(parts, parts.clock())),
            _Tick("builds", 0.5, lambda: self.builder.tick_builds(parts, parts.clock())),
            _Tick("deltas", 0.5, self.deltas.tick),
            _Tick("counters", 3.0, self._store_counters),
            # Repairs what an enrolment or revocation could not apply because the broker was away.
            _Tick("permissions", 10.0, lambda: parts.permissions.apply(broker_rights(parts.db))),
            _Tick("retained", 1.0, self._republish_retained),
            _Tick("revocations", 1.0, self._apply_revocations),
            _Tick("farewells", 60.0, lambda: self._in_transaction(farewell.end_unanswered)),
            _Tick(
                "expiry",
                86400.0,
                lambda: self._in_transaction(farewell.alert_expiring, alarm=timedelta(days=parts.settings.pki.alarm_days)),
            ),
            _Tick("certificates", 0.5, lambda: certificates.settle(parts.db, parts.permissions, now=parts.clock())),
            _Tick("metadata", 600.0, lambda: parts.repository.refresh(parts.clock())),
            _Tick("pruning", 3600.0, self._prune),
        ]
        if self.keeper is not None:
            ticks.append(_Tick("runs", 0.5, self.keeper.tick))
        return ticks

    def _run_tick(self, tick: _Tick) -> None:
        try:
            tick.act()
        except Exception:
            # The loop's top: a fault in one capability must not stop the others, and the next tick tries again.
            logger.exception("tick %s failed", tick.name)
        tick.due = time.monotonic() + tick.every_s

    def _republish_retained(self) -> None:
        """A broker that was away may have lost what it kept for devices: it gets the newest again, whatever kind it is."""
        connections = self.links[0].connections
        if connections > max(self._republished, 1):
            with self.parts.db.begin() as session:
                rollouts.republish_desired(session, self.parts.director)
        self._republished = connections

    def _apply_revocations(self) -> None:
        """Within a second of a clone, a farewell or a retired certificate; the "permissions" tick repairs what this one misses."""
        newest = certificates.newest_revocation(self.parts.db)
        if newest != self._newest_revocation:
            self.parts.permissions.apply(broker_rights(self.parts.db))
            self._newest_revocation = newest

    def _in_transaction(self, act: Callable[..., None], **values: object) -> None:
        with self.parts.db.begin() as session:
            act(session, now=self.parts.clock(), **values)

    def _store_counters(self) -> None:
        counters = {("covey_mqtt_refused", reason): float(count) for reason, count in self.router.refused.items()}
        counters |= {("covey_mqtt_handled", channel): float(count) for channel, count in self.router.handled.items()}
        counters |= {("covey_delivery", what): float(count) for what, count in self.delivery.counters.items()}
        counters |= {
            ("covey_gateway_waiting", ""): float(self.gateway.waiting),
            ("covey_broker_connections", ""): float(self.links[0].connections),
            ("covey_outbox_sent", ""): float(self.outbox.sent),
        }
        with self.parts.db.begin() as session:
            store_counters(session, "worker", counters, now=self.parts.clock())

    def _prune(self) -> None:
        now = self.parts.clock()
        with self.parts.db.begin() as session:
            outbox.prune(session, now=now, keep=_KEEP_SENT)
            prune_logins(session, now=now)
            prune_idempotency_keys(session, now=now)
            telemetry.prune_readings(session, now=now, keep=timedelta(days=self.parts.settings.telemetry.keep_days))

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self._stop.set()
