"""The MQTT connection: paho-mqtt, MQTT 3.1.1, mutual TLS, a persistent session, an offline last will.

Rules:
- Callbacks run in paho's thread and only put events into the inbox.
- A message is refused before it is queued if it is too large or the connection is away: paho would otherwise resend a poison
  message for ever, and its queue has no place in the agent's accounting. Whatever matters is kept elsewhere until acknowledged.
- Nothing that the network does ends the agent: no name resolution, no route, a refused certificate are all a reason to wait, with
  jitter, up to a minute, and try again. The first wait is drawn too: a broker that restarts loses its whole fleet at one moment.
  A certificate that the broker refuses under TLS 1.3 shows only as an end right after connecting.
"""

import logging
import ssl
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from covey_agent.adapters.connection_reasons import explain, explain_alert
from covey_agent.adapters.lean_imports import without_http
from covey_agent.core.backoff import Backoff, Random
from covey_agent.core.jobs import BrokerAddress
from covey_agent.inbox import BrokerConnected, BrokerLost, MessageArrived, Post
from covey_contract.ids import mqtt_client_id
from covey_contract.limits import MAX_PAYLOAD_BYTES

with without_http():
    from paho.mqtt.client import MQTT_LOG_ERR, Client, ConnectFlags, DisconnectFlags, MQTTMessage
    from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
    from paho.mqtt.properties import Properties
    from paho.mqtt.reasoncodes import ReasonCode

logger = logging.getLogger(__name__)
KEEPALIVE_S = 60
MAX_QUEUED = 64  # messages that wait for the broker's acknowledgement
STABLE_S = 30.0  # a connection that lasted this long ends the series of failures
STOP_TIMEOUT_S = 2.0


class PahoBroker:
    """One client under the device's own id. `address` says for each attempt, counted from 1, where and by which certificate;
    `last_words` gives the topic and payload of the offline status."""

    def __init__(
        self,
        address: Callable[[int], BrokerAddress],
        *,
        subscriptions: Sequence[str],
        last_words: Callable[[], tuple[str, bytes]],
        post: Post,
        backoff: Backoff,
        random: Random,
        monotonic: Callable[[], float],
    ) -> None:
        self._address = address
        self._subscriptions = list(subscriptions)
        self._last_words = last_words
        self._post = post
        self._backoff = backoff
        self._random = random
        self._monotonic = monotonic
        self._failures = 0
        self._connected_at = 0.0
        self._stopping = threading.Event()
        self._client = Client(
            CallbackAPIVersion.VERSION2, client_id=_client_id(address(1)), clean_session=False, protocol=MQTTProtocolVersion.MQTTv311
        )
        self._context: ssl.SSLContext | None = None
        self._certificate = ""  # of the present attempt
        self._trouble = ""  # what paho logged last as an error in it

    def start(self) -> None:
        """Connect in the background and stay connected. Unreadable identity files are an error in the log, not the end."""
        client = self._client
        client.max_queued_messages_set(MAX_QUEUED)
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_connect_fail = self._on_connect_fail
        client.on_message = self._on_message
        client.on_pre_connect = self._on_pre_connect
        client.on_log = self._on_log
        address = self._address(1)
        try:
            self._context = _make_context(address)
            client.tls_set_context(self._context)
            address.host.encode("idna")  # paho's thread would end of a host name that cannot be one
        except (OSError, ssl.SSLError, UnicodeError) as exc:
            logger.exception("the identity cannot be used, so the broker will not be reached")
            self._post(BrokerLost(f"the identity cannot be used: {exc}"))
            return
        self._plan_next_attempt()
        client.connect_async(address.host, address.port, keepalive=KEEPALIVE_S)
        client.loop_start()

    def renew(self) -> None:
        """Connect anew, if connected, by the certificate that counts now; an attempt under way takes it by itself."""
        if not self._client.is_connected():
            return
        address = self._address(1)
        self._failures = 0
        self._client.disconnect()  # politely: the broker sends no last will
        self._client.loop_stop()
        self._failures = 1
        self._client.connect_async(address.host, address.port, keepalive=KEEPALIVE_S)
        self._client.loop_start()

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> bool:
        """Hand over one message with QoS 1; False if it is too large, the connection is away, or too much is under way."""
        if len(payload) > MAX_PAYLOAD_BYTES:
            logger.error("a payload of %d bytes for %s was not sent: at most %d are allowed", len(payload), topic, MAX_PAYLOAD_BYTES)
            return False
        if not self._client.is_connected():
            return False
        return self._client.publish(topic, payload, qos=1, retain=retain).rc is MQTTErrorCode.MQTT_ERR_SUCCESS

    def stop(self) -> None:
        """Say goodbye if connected: the broker sends a last will only for connections that break."""
        self._stopping.set()
        if self._client.is_connected():
            topic, payload = self._last_words()
            try:
                self._client.publish(topic, payload, qos=1, retain=True).wait_for_publish(STOP_TIMEOUT_S)
            except (RuntimeError, ValueError) as exc:
                logger.info("the offline status was not sent: %s", exc)
        self._client.disconnect()

    def _plan_next_attempt(self) -> None:
        """paho doubles a fixed delay; giving it both bounds makes the next wait exactly the one with jitter."""
        self._failures += 1
        delay = self._backoff.delay_s(self._failures, self._random)
        self._client.reconnect_delay_set(min_delay=delay, max_delay=delay)  # type: ignore[arg-type]  # it sleeps fractions too

    def _on_pre_connect(self, client: Client, _userdata: object) -> None:
        self._trouble = ""
        topic, payload = self._last_words()
        client.will_set(topic, payload, qos=1, retain=True)
        address = self._address(self._failures)
        if self._context is not None and address.cert_file != self._certificate:
            try:
                self._context.load_cert_chain(address.cert_file, address.key_file)  # takes the place of the one before
                self._certificate = address.cert_file
            except (OSError, ssl.SSLError) as exc:
                logger.warning("the certificate %s cannot be used: %s", address.cert_file, exc)

    def _on_connect(
        self, client: Client, _userdata: object, _flags: ConnectFlags, reason: ReasonCode, _properties: Properties | None
    ) -> None:
        if reason.is_failure:
            logger.warning("the broker refused the connection: %s", reason)
            return
        self._connected_at = self._monotonic()
        client.subscribe([(topic, 1) for topic in self._subscriptions])
        self._post(BrokerConnected(self._certificate))

    def _on_disconnect(
        self, _client: Client, _userdata: object, _flags: DisconnectFlags, reason: ReasonCode, _properties: Properties | None
    ) -> None:
        if self._connected_at and self._monotonic() - self._connected_at > STABLE_S:
            self._failures = 0
        self._connected_at = 0.0
        self._lost(explain_alert(self._trouble) or str(reason))

    def _on_connect_fail(self, _client: Client, _userdata: object) -> None:
        address = self._address(self._failures)
        self._lost(explain(sys.exc_info()[1], host=address.host, port=address.port))  # paho calls this while it handles the error

    def _on_log(self, _client: Client, _userdata: object, level: int, text: str) -> None:
        """A certificate that the broker refuses under TLS 1.3 shows only here, as an alert after connecting."""
        if level == MQTT_LOG_ERR:
            self._trouble = text

    def _lost(self, reason: str) -> None:
        self._plan_next_attempt()
        if not self._stopping.is_set():
            self._post(BrokerLost(reason))

    def _on_message(self, _client: Client, _userdata: object, message: MQTTMessage) -> None:
        self._post(MessageArrived(message.topic, bytes(message.payload)))


def _make_context(address: BrokerAddress) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # trusts the fleet's CA and nobody else
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_verify_locations(address.ca_file)
    context.load_cert_chain(address.cert_file, address.key_file)
    return context


def _client_id(address: BrokerAddress) -> str:
    try:
        return mqtt_client_id(address.device, Path(address.session_file or address.key_file).read_bytes())
    except OSError:
        return address.device  # `start` says what is wrong with the file, and does not connect
