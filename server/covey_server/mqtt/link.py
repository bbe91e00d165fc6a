"""The server's connection to the broker: mutual TLS as `covey-server`, for ever reconnecting.

The paho thread only hands messages over; whoever takes them acknowledges each after its transaction has committed. What is
unacknowledged when the connection drops comes again, and an acknowledgement that belongs to a connection before the present
one is not sent, because the broker may have given its number to another message since.
"""

import logging
import secrets
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from threading import Event, Lock
from typing import Any, Protocol

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion

from covey_contract.errors import PayloadTooLargeError
from covey_contract.ids import mqtt_client_id
from covey_contract.limits import MAX_PAYLOAD_BYTES
from covey_contract.topics import server_subscriptions
from covey_server.devices.authority import KeyFiles, write_private
from covey_server.devices.rules import SERVER_NAME
from covey_server.errors import UnavailableError

logger = logging.getLogger(__name__)

_KEEPALIVE_S = 30
_MAX_RECONNECT_S = 15
_MAX_INFLIGHT = 100  # QoS 1 messages sent and not yet acknowledged by the broker
_MAX_QUEUED = 2000  # of our own, waiting for that


@dataclass(frozen=True, slots=True)
class Incoming:
    """A message as it came, and what is needed to acknowledge it."""

    topic: str
    payload: bytes
    mid: int
    qos: int
    connection: int  # how many connections there had been


class Receipt(Protocol):
    """Something that was handed to the broker and may have been acknowledged since."""

    def is_published(self) -> bool:
        """Whether the broker has it."""
        ...


class BrokerLink:
    """One MQTT connection. `publish` may be called from any thread."""

    def __init__(self, *, host: str, port: int, keys: KeyFiles, on_message: Callable[[Incoming], None], subscribe: bool = True) -> None:
        self._address = (host, port)
        self._on_message = on_message
        self._filters = server_subscriptions() if subscribe else []
        self._connected = Event()
        self._lock = Lock()
        self._connections = 0
        # Clean sessions for a link that only publishes: the broker need not remember it.
        self._client = self._make_client(keys, client_id=_client_id(keys, "" if subscribe else "bulk"), clean=not subscribe)

    @property
    def is_connected(self) -> bool:
        """Whether the broker is there now and sends us what devices say."""
        return self._connected.is_set()

    @property
    def connections(self) -> int:
        """How often it has connected, for /metrics."""
        return self._connections

    def start(self) -> None:
        """Connect in the background and stay connected."""
        self._client.connect_async(*self._address, keepalive=_KEEPALIVE_S)
        self._client.loop_start()

    def stop(self) -> None:
        """Disconnect and end the thread."""
        self._client.disconnect()
        self._client.loop_stop()
        self._connected.clear()

    def wait_connected(self, timeout_s: float) -> bool:
        """Wait until the broker is there."""
        return self._connected.wait(timeout_s)

    def send(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False) -> Receipt:
        """Hand one message over. With QoS 1 it is resent after a reconnect until the broker has it. Raises UnavailableError.

        Raises PayloadTooLargeError: the broker would end the connection for it, and paho would send it again for ever.
        """
        if len(payload) > MAX_PAYLOAD_BYTES:
            raise PayloadTooLargeError(topic, len(payload), MAX_PAYLOAD_BYTES)
        if not self.is_connected:
            raise UnavailableError("the broker is not connected")
        info = self._client.publish(topic, payload, qos=qos, retain=retain)
        if info.rc is MQTTErrorCode.MQTT_ERR_NO_CONN and qos > 0:
            # The connection went in this moment: paho has queued it all the same, but a receipt that says so would only raise.
            info.rc = MQTTErrorCode.MQTT_ERR_SUCCESS
        if info.rc is not MQTTErrorCode.MQTT_ERR_SUCCESS:
            raise UnavailableError(f"the broker takes nothing now: {mqtt.error_string(info.rc)}")
        return info

    def acknowledge(self, message: Incoming) -> None:
        """Tell the broker that a message is dealt with."""
        with self._lock:
            if message.qos > 0 and message.connection == self._connections:
                self._client.ack(message.mid, message.qos)

    def _make_client(self, keys: KeyFiles, *, client_id: str, clean: bool) -> mqtt.Client:
        client = mqtt.Client(
            CallbackAPIVersion.VERSION2, client_id=client_id, clean_session=clean, protocol=MQTTProtocolVersion.MQTTv311, manual_ack=True
        )
        context = ssl.create_default_context(cafile=str(keys.ca))
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(keys.certificate, keys.key)
        client.tls_set_context(context)
        client.reconnect_delay_set(1, _MAX_RECONNECT_S)
        client.max_inflight_messages_set(_MAX_INFLIGHT)
        client.max_queued_messages_set(_MAX_QUEUED)
        client.suppress_exceptions = True  # an exception would end paho's thread; it logs it and goes on
        client.on_connect = self._connect_done
        client.on_subscribe = self._subscribed
        client.on_disconnect = self._disconnected
        client.on_message = self._received
        return client

    def _connect_done(self, client: mqtt.Client, _user: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        if reason.is_failure:
            logger.warning("the broker refused the connection: %s", reason)
            return
        with self._lock:
            self._connections += 1
        if self._filters:
            client.subscribe([(topic, 1) for topic in self._filters])  # ready when the broker has answered
        else:
            self._ready()

    def _subscribed(self, _client: mqtt.Client, _user: Any, _mid: int, reasons: Any, _properties: Any) -> None:
        refused = [topic for topic, reason in zip(self._filters, reasons, strict=False) if reason.is_failure]
        if refused:
            logger.error("the broker lets the server not hear %s; check its table of users", ", ".join(refused))
        self._ready()

    def _ready(self) -> None:
        self._connected.set()
        logger.info("connected to the broker at %s:%s", *self._address)

    def _disconnected(self, _client: mqtt.Client, _user: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        was_connected = self._connected.is_set()
        self._connected.clear()
        logger.log(logging.WARNING if was_connected else logging.DEBUG, "no connection to the broker: %s", reason)

    def _received(self, _client: mqtt.Client, _user: Any, message: mqtt.MQTTMessage) -> None:
        self._on_message(Incoming(message.topic, bytes(message.payload), message.mid, message.qos, self._connections))


def _client_id(keys: KeyFiles, role: str) -> str:
    """As no device can guess it. Not made of the gateway's own key, which is renewed: the broker must find the session again."""
    file = keys.key.with_name("gateway.session")
    try:
        secret = file.read_bytes()
    except FileNotFoundError:
        secret = secrets.token_bytes(32)
        write_private(file, secret)
    return mqtt_client_id(SERVER_NAME, secret, role)
