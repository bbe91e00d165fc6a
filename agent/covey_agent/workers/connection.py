"""One MQTT 3.1.1 connection over mTLS for a child program, without a thread.

The network loop runs in `pump`, while the caller has nothing better to do. What the caller does not read stays in the kernel and
slows the sender down, so memory is bounded whatever arrives. A lost connection is made again, with growing, jittered pauses, when
it is next needed; subscriptions are then made anew, because the session is clean.
"""

import logging
import random
import ssl
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from covey_agent.core.jobs import BrokerAddress
from covey_agent.workers.errors import NetworkError
from covey_agent.workers.patience import Patience, PatienceSettings
from covey_contract.ids import mqtt_client_id

logger = logging.getLogger(__name__)
_MAX_INBOX = 256  # a group has 16 chunks; more than this has not been asked for


@dataclass(frozen=True, slots=True)
class LinkSettings:
    """How patient the connection is; seconds."""

    metadata: PatienceSettings = field(default_factory=PatienceSettings)
    # A 64 KiB chunk holds a 128 kbit/s link for 4 s: asking again before that would ask for the whole group twice.
    chunks: PatienceSettings = field(default_factory=lambda: PatienceSettings(first_wait_s=8.0, least_wait_s=2.0))
    connect: PatienceSettings = field(default_factory=lambda: PatienceSettings(first_wait_s=0.5, patience_s=60.0))
    connect_timeout_s: float = 10.0
    keepalive_s: int = 60


class Connection:
    """Connects when first needed. Not for use from several threads."""

    def __init__(self, broker: BrokerAddress, *, role: str, settings: LinkSettings, clock: Callable[[], float] = time.monotonic) -> None:
        self._broker = broker
        self._role = role
        self._settings = settings
        self._chance = random.Random()
        self.now = clock
        self._client: mqtt.Client | None = None
        self._connected = False
        self._refusal = ""  # why the last attempt failed
        self._granted: dict[int, bool] = {}  # message id of a SUBSCRIBE -> the broker's answer
        self._subscribed: set[str] = set()
        self._inbox: deque[tuple[str, bytes]] = deque(maxlen=_MAX_INBOX)

    def new_patience(self, settings: PatienceSettings) -> Patience:
        """A Patience on this connection's clock."""
        return Patience(settings, now=self.now(), chance=self._chance)

    def is_subscribed(self, topic: str) -> bool:
        """Whether the topic's messages arrive now; false after a disconnection."""
        return self._connected and topic in self._subscribed

    def subscribe(self, topic: str) -> None:
        """Subscribe, connecting first if necessary. Raises NetworkError if the broker does not let us."""
        patience = self.new_patience(self._settings.connect)
        while not self.is_subscribed(topic):
            if patience.is_over(now=self.now()):
                raise NetworkError(f"cannot use the broker at {self._broker.host}:{self._broker.port}: {self._refusal}")
            until = self.now() + patience.asked(now=self.now())
            client = self._client if self._connected else self._connect()
            if client is None or not self._subscribe(client, topic):
                time.sleep(max(until - self.now(), 0.0))

    def unsubscribe(self, topic: str) -> None:
        """What still comes on the topic is dropped."""
        self._subscribed.discard(topic)
        if self._client is not None and self._connected:
            self._client.unsubscribe(topic)
        self._inbox = deque(((name, payload) for name, payload in self._inbox if name != topic), maxlen=_MAX_INBOX)

    def publish(self, topic: str, payload: bytes) -> None:
        """Send at most once: what is lost is sent again by whoever misses an answer."""
        if self._client is not None and self._connected:
            self._client.publish(topic, payload, qos=0)

    def take(self, topic: str) -> bytes | None:
        """The oldest payload that has arrived on the topic, if any; what came for others before it is dropped."""
        while self._inbox:
            name, payload = self._inbox.popleft()
            if name == topic:
                return payload
        return None

    def pump(self, timeout_s: float) -> None:
        """Let the network work for up to `timeout_s` (at most a second), or until something happened."""
        if self._client is None or not self._connected:
            return
        if self._client.loop(timeout=min(max(timeout_s, 0.0), 1.0)) != MQTTErrorCode.MQTT_ERR_SUCCESS:
            self._lose("the connection was lost")

    def close(self) -> None:
        """Disconnect politely."""
        if self._client is not None and self._connected:
            self._client.disconnect()
            self._client.loop(timeout=0.0)
        self._drop_client()

    def _connect(self) -> mqtt.Client | None:
        # A new client each time: after an unclean end the old one may still hold half a packet.
        self._drop_client()
        client = self._new_client()
        self._client = client
        self._subscribed.clear()
        self._inbox.clear()
        try:
            client.connect(self._broker.host, self._broker.port, keepalive=self._settings.keepalive_s)
        except OSError as exc:  # ssl.SSLError is one, too
            self._refusal = str(exc)
            logger.warning("cannot connect to %s:%d: %s", self._broker.host, self._broker.port, exc)
            return None
        self._refusal = "it closed the connection before login; is this device's certificate revoked?"
        return client if self._loop_until(client, lambda: self._connected) else None

    def _subscribe(self, client: mqtt.Client, topic: str) -> bool:
        code, mid = client.subscribe(topic, qos=0)
        if code != MQTTErrorCode.MQTT_ERR_SUCCESS or mid is None or not self._loop_until(client, lambda: mid in self._granted):
            self._lose("the connection was lost")
            return False
        if not self._granted.pop(mid):
            self._refusal = f"it does not grant this device the topic {topic}"
            return False
        self._subscribed.add(topic)
        return True

    def _loop_until(self, client: mqtt.Client, condition: Callable[[], bool]) -> bool:
        until = self.now() + self._settings.connect_timeout_s
        while not condition() and self.now() < until:
            if client.loop(timeout=0.5) != MQTTErrorCode.MQTT_ERR_SUCCESS:
                return False
        return condition()

    def _drop_client(self) -> None:
        self._connected = False
        sock = self._client.socket() if self._client is not None else None
        if sock is not None:
            sock.close()
        self._client = None

    def _lose(self, why: str) -> None:
        if self._connected:
            logger.info("%s", why)
        self._refusal = why
        self._connected = False

    def _new_client(self) -> mqtt.Client:
        client = mqtt.Client(
            CallbackAPIVersion.VERSION2, client_id=_client_id(self._broker, self._role), protocol=mqtt.MQTTv311, clean_session=True
        )
        client.tls_set_context(_tls_context(self._broker))
        client.connect_timeout = self._settings.connect_timeout_s
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_subscribe = self._on_subscribe
        client.on_message = self._on_message
        return client

    def _on_connect(
        self, client: mqtt.Client, _userdata: object, _flags: mqtt.ConnectFlags, reason: ReasonCode, _properties: Properties | None
    ) -> None:
        self._connected = client is self._client and not reason.is_failure
        self._refusal = str(reason)

    def _on_disconnect(
        self, client: mqtt.Client, _userdata: object, _flags: mqtt.DisconnectFlags, reason: ReasonCode, _properties: Properties | None
    ) -> None:
        if client is self._client:
            self._lose(f"the connection was lost: {reason}" if self._connected else self._refusal)

    def _on_subscribe(
        self, _client: mqtt.Client, _userdata: object, mid: int, reasons: list[ReasonCode], _properties: Properties | None
    ) -> None:
        self._granted[mid] = not any(reason.is_failure for reason in reasons)

    def _on_message(self, _client: mqtt.Client, _userdata: object, message: mqtt.MQTTMessage) -> None:
        self._inbox.append((message.topic, bytes(message.payload)))


def _client_id(broker: BrokerAddress, role: str) -> str:
    try:
        return mqtt_client_id(broker.device, Path(broker.session_file or broker.key_file).read_bytes(), role)
    except OSError as exc:
        raise NetworkError(f"cannot read this device's certificates: {exc}") from exc


def _tls_context(broker: BrokerAddress) -> ssl.SSLContext:
    """Only the fleet's own CA is believed, and the broker must prove its host name."""
    try:
        context = ssl.create_default_context(cafile=broker.ca_file)
        context.load_cert_chain(broker.cert_file, broker.key_file)
    except OSError as exc:
        raise NetworkError(f"cannot read this device's certificates: {exc}") from exc
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context
