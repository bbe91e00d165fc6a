"""The real broker, embedded or Mosquitto, started for a test in a temporary folder on free ports.

    with running_broker(tmp_path, devices=["cam-1"]) as broker:
        client = broker.connect("cam-1")

`run_nats(config, folder, port)` starts a nats-server with any configuration.
"""

import os
import signal
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from tests.fakes.pki import ClientFiles, make_csr, make_key, write_client

from covey_contract.ids import DeviceId
from covey_server.broker.crl import MosquittoPermissions
from covey_server.broker.embedded import embedded_broker, is_listening
from covey_server.broker.external import permissions_of
from covey_server.broker.mosquitto import mosquitto_broker
from covey_server.broker.permissions import NatsPermissions
from covey_server.devices.authority import FileAuthority, KeyFiles
from covey_server.parts import BrokerRight
from covey_server.processes import ProcessSpec
from covey_server.settings import BrokerSettings, Settings

WAIT_S = 20.0


def free_port() -> int:
    """A TCP port of loopback that nobody has now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_until(condition: Callable[[], object], *, what: str, timeout_s: float = WAIT_S) -> None:
    """Wait for something that another process or thread does; fails the test if it never comes."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {timeout_s} s in vain for: {what}")
        time.sleep(0.01)


@dataclass
class Process:
    """A running broker."""

    spec: ProcessSpec
    popen: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it listens."""
        self.popen = subprocess.Popen(self.spec.argv, env=self.spec.env, cwd=self.spec.cwd)
        wait_until(lambda: self.spec.ready() or self._ended(), what=f"{self.spec.name} listening")
        assert not self._ended(), f"{self.spec.name} ended at once"

    def stop(self, stop_signal: int = signal.SIGTERM) -> None:
        """Stop it and wait until it is gone."""
        if self.popen is not None and self.popen.poll() is None:
            self.popen.send_signal(stop_signal)
            self.popen.wait(WAIT_S)
        self.popen = None

    def _ended(self) -> bool:
        return self.popen is None or self.popen.poll() is not None


@contextmanager
def run_nats(binary: Path, config: str, folder: Path, *, port: int) -> Iterator[Process]:
    """A nats-server with this configuration, which must listen on `port` of loopback."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "nats.conf"
    path.write_text(config, "utf-8")
    environment = {"PATH": os.environ.get("PATH", "")}
    process = Process(ProcessSpec("nats", [str(binary), "-c", str(path)], environment, folder, lambda: is_listening("127.0.0.1", port)))
    process.start()
    try:
        yield process
    finally:
        process.stop()


@dataclass
class Peer:
    """An MQTT client that remembers what it got."""

    client: mqtt.Client
    messages: list[tuple[str, bytes, bool]] = field(default_factory=list)  # topic, payload, retained
    granted: list[bool] = field(default_factory=list)  # one for each subscription that was answered
    grants: list[bool] = field(default_factory=list)  # one for each topic
    connects: int = 0
    disconnects: int = 0
    published: set[int] = field(default_factory=set)

    def subscribe(self, topic: str, qos: int = 1) -> bool:
        """Subscribe and tell whether the broker granted it."""
        before = len(self.granted)
        self.client.subscribe(topic, qos)
        wait_until(lambda: len(self.granted) > before or self.disconnects, what=f"answer to subscribing {topic}")
        return self.granted[before] if len(self.granted) > before else False

    def publish(self, topic: str, payload: bytes, qos: int = 1, *, retain: bool = False) -> None:
        """Publish and wait for the broker's PUBACK."""
        info = self.client.publish(topic, payload, qos, retain)
        wait_until(lambda: info.mid in self.published or self.disconnects, what=f"PUBACK for {topic}")

    def payloads(self, topic: str) -> list[bytes]:
        """What has come on one topic."""
        return [payload for got, payload, _ in self.messages if got == topic]

    def close(self) -> None:
        """Disconnect and end the thread."""
        self.client.disconnect()
        self.client.loop_stop()


@dataclass
class RunningBroker:
    """A broker with its fleet CA."""

    settings: Settings
    authority: FileAuthority
    process: Process
    permissions: NatsPermissions | MosquittoPermissions
    rights: dict[str, list[BrokerRight]] = field(default_factory=dict)
    files: dict[str, ClientFiles] = field(default_factory=dict)
    peers: list[Peer] = field(default_factory=list)

    @property
    def port(self) -> int:
        """The MQTT port."""
        return self.settings.broker.port

    def allow(self, *devices: str) -> None:
        """Let exactly these devices in, each by every certificate that it was given."""
        self.permissions.apply(self.table(*devices))

    def table(self, *devices: str) -> list[BrokerRight]:
        """What the server would know: the certificates of these devices in force, all others revoked."""
        for device in devices:
            self.identity(device)
        now = datetime.now(UTC)
        return [
            replace(right, revoked_at=None if device in devices else right.revoked_at or now)
            for device, rights in self.rights.items()
            for right in rights
        ]

    def identity(self, device: str) -> ClientFiles:
        """A device's certificate; made when it is first asked for."""
        if device not in self.files:
            self.files[device] = self.renew(device)
        return self.files[device]

    def renew(self, device: str) -> ClientFiles:
        """Another certificate for a device, with a key of its own; the broker does not know it yet."""
        key, now, known = make_key(), datetime.now(UTC), self.rights.setdefault(device, [])
        issued = self.authority.sign_request(make_csr(device, key=key), device=DeviceId(device), now=now)
        known.append(BrokerRight(DeviceId(device), issued.user, issued.serial, issued.expires_at))
        folder = self.settings.path("devices", f"{device}-{len(known)}")
        return write_client(folder, self.authority, device, key=key, issued=issued)

    def gateway_files(self) -> KeyFiles:
        """The server's own client certificate."""
        return self.authority.issue_gateway_certificate(now=datetime.now(UTC))

    def connect(
        self,
        device: str,
        *,
        client_id: str | None = None,
        clean: bool = True,
        files: ClientFiles | KeyFiles | None = None,
        will: tuple[str, bytes] | None = None,
        expect: bool = True,
    ) -> Peer:
        """Connect by mutual TLS as a device (or with the given files) and wait until it is connected, or refused."""
        files = files or self.identity(device)
        client = mqtt.Client(
            CallbackAPIVersion.VERSION2, client_id=client_id or device, clean_session=clean, protocol=MQTTProtocolVersion.MQTTv311
        )
        context = ssl.create_default_context(cafile=str(files.ca))
        context.load_cert_chain(files.certificate, files.key)
        client.tls_set_context(context)
        if will is not None:
            client.will_set(will[0], will[1], qos=1, retain=True)
        client.reconnect_delay_set(60, 60)  # a test wants to see the end of a connection, not the next one
        peer = Peer(client)
        settled = threading.Event()
        _watch(peer, settled)
        client.connect("127.0.0.1", self.port, keepalive=30)
        client.loop_start()
        self.peers.append(peer)
        assert settled.wait(WAIT_S), "the broker neither accepted nor refused"
        assert bool(peer.connects) is expect, f"connected: {bool(peer.connects)}"
        return peer


def _watch(peer: Peer, settled: threading.Event) -> None:
    def on_connect(_client: mqtt.Client, _user: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        peer.connects += not reason.is_failure
        settled.set()

    def on_disconnect(_client: mqtt.Client, _user: Any, _flags: Any, _reason: Any, _properties: Any) -> None:
        peer.disconnects += 1
        settled.set()

    def on_message(_client: mqtt.Client, _user: Any, message: mqtt.MQTTMessage) -> None:
        peer.messages.append((message.topic, bytes(message.payload), message.retain))

    def on_subscribe(_client: mqtt.Client, _user: Any, _mid: int, reasons: Any, _properties: Any) -> None:
        peer.granted.append(not reasons[0].is_failure)
        peer.grants += [not reason.is_failure for reason in reasons]

    def on_publish(_client: mqtt.Client, _user: Any, mid: int, _reason: Any, _properties: Any) -> None:
        peer.published.add(mid)

    client = peer.client
    client.on_connect, client.on_disconnect, client.on_message = on_connect, on_disconnect, on_message
    client.on_subscribe, client.on_publish = on_subscribe, on_publish


@contextmanager
def running_broker(work_dir: Path, *, devices: Iterable[str] = (), kind: str = "embedded") -> Iterator[RunningBroker]:
    """A broker exactly as `covey up` runs it, on a free port."""
    settings = Settings(work_dir=work_dir, broker=BrokerSettings(port=free_port(), kind=kind))
    now = datetime.now(UTC)
    authority = FileAuthority.create(settings, now=now)
    permissions = permissions_of(settings)
    assert isinstance(permissions, NatsPermissions | MosquittoPermissions)
    nobody = Process(ProcessSpec("broker", [], {}, None, lambda: True))
    broker = RunningBroker(settings, authority, nobody, permissions)
    start = embedded_broker if kind == "embedded" else mosquitto_broker
    broker.process = Process(start(settings, authority=authority, rights=broker.table(*devices), now=now))
    broker.process.start()
    try:
        yield broker
    finally:
        for peer in broker.peers:
            peer.close()
        broker.process.stop()
