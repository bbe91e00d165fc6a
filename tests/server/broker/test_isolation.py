"""The real broker keeps devices apart: by certificate, topic, client id, and at once when one is revoked."""

import socket
import ssl
import stat
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import paho.mqtt.client as mqtt
import pytest
from cryptography import x509
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from tests.fakes.nats_broker import RunningBroker, running_broker, wait_until
from tests.fakes.services import require

from covey_contract.limits import MAX_PAYLOAD_BYTES
from covey_server.broker.binary import find_binary
from covey_server.broker.crl import MosquittoPermissions
from covey_server.broker.files import BrokerFiles
from covey_server.broker.mosquitto import find_mosquitto
from covey_server.errors import CoveyServerError
from covey_server.settings import BrokerSettings

pytestmark = pytest.mark.broker
LONGEST = "x" * 64


def _is_installed() -> bool:
    try:
        return find_binary(BrokerSettings()).exists()
    except CoveyServerError:
        return False


def _mosquitto_is_installed() -> bool:
    try:
        return find_mosquitto(BrokerSettings()).exists()
    except CoveyServerError:
        return False


@pytest.fixture(params=["embedded", "mosquitto"])
def broker(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[RunningBroker]:
    """Each kind of broker that `covey up` runs."""
    kind = str(request.param)
    require(_is_installed() if kind == "embedded" else _mosquitto_is_installed(), kind)
    with running_broker(tmp_path, devices=["cam-1", "cam-2", "cam-3", LONGEST], kind=kind) as running:
        yield running


only_embedded = pytest.mark.parametrize("broker", ["embedded"], indirect=True)
only_mosquitto = pytest.mark.parametrize("broker", ["mosquitto"], indirect=True)


@only_embedded  # the other one grants every subscription and filters what it delivers
def test_a_device_reads_its_own_topics_and_artifacts_only(broker: RunningBroker) -> None:
    device = broker.connect("cam-1")
    digest = "a" * 64
    allowed = ["covey/v1/d/cam-1/down/desired", "covey/v1/d/cam-1/down/#", f"covey/v1/a/{digest}/0", "covey/v1/a/#"]
    refused = [
        "#",
        "+/+/+/#",
        "covey/#",
        "covey/v1/d/#",
        "covey/v1/d/+/down/desired",
        "covey/v1/d/cam-2/down/desired",
        "covey/v1/d/cam-2/status",
        "covey/v1/d/cam-1/up/#",
        "covey/v1/d/cam-10/down/desired",
        "$MQTT/#",
        "$MQTT/sub/#",
        "$MQTT/msgs/#",
        "$SYS/#",
        "$JS/#",
    ]
    assert [topic for topic in allowed if not device.subscribe(topic)] == []
    assert [topic for topic in refused if device.subscribe(topic)] == []


def test_a_device_is_given_what_it_may_read_and_nothing_else(broker: RunningBroker) -> None:
    gateway = broker.connect("covey-server", files=broker.gateway_files())
    device = broker.connect("cam-1")
    for topic in ("#", "+/+/+/#", "covey/v1/d/+/down/#", "covey/v1/d/cam-2/#", "covey/v1/d/+/status", "covey/v1/d/+/up/#", "$SYS/#"):
        device.subscribe(topic)
    for topic in ("covey/v1/d/cam-1/down/#", f"covey/v1/a/{'a' * 64}/0"):
        assert device.subscribe(topic)
    forbidden = ["covey/v1/d/cam-2/down/desired", "covey/v1/d/cam-2/status", "covey/v1/d/cam-1/up/reported", "covey/v1/d/cam-10/down/ack"]
    for topic in [*forbidden, f"covey/v1/a/{'a' * 64}/0", "covey/v1/d/cam-1/down/certificate"]:
        gateway.publish(topic, b"x")
    wait_until(lambda: device.payloads("covey/v1/d/cam-1/down/certificate"), what="what is sent last")
    assert {topic for topic, _, _ in device.messages} == {f"covey/v1/a/{'a' * 64}/0", "covey/v1/d/cam-1/down/certificate"}


def test_a_device_hears_nothing_that_is_for_another(broker: RunningBroker) -> None:
    gateway = broker.connect("covey-server", files=broker.gateway_files())
    first, second = broker.connect("cam-1"), broker.connect("cam-2")
    for device in (first, second):
        for topic in ("#", "covey/v1/d/+/down/#", "covey/v1/d/cam-1/down/command"):
            device.subscribe(topic)
    gateway.publish("covey/v1/d/cam-1/down/command", b"for cam-1", retain=True)
    wait_until(lambda: first.messages, what="the command at cam-1")
    assert second.subscribe("covey/v1/d/cam-2/down/#")
    gateway.publish("covey/v1/d/cam-2/down/ack", b"for cam-2")
    wait_until(lambda: second.messages, what="the ack at cam-2")
    assert [payload for _, payload, _ in second.messages] == [b"for cam-2"]


@pytest.mark.parametrize(
    "topic",
    [
        "covey/v1/d/cam-2/up/readings",
        "covey/v1/d/cam-2/status",
        "covey/v1/d/cam-1/down/desired",
        "covey/v1/d/cam-1/down/ack",
        f"covey/v1/a/{'a' * 64}/0",
        "covey/v1/d/cam-1",
        "other/topic",
    ],
)
def test_a_device_says_nothing_in_the_name_of_another(broker: RunningBroker, topic: str) -> None:
    gateway = broker.connect("covey-server", files=broker.gateway_files())
    assert gateway.subscribe("covey/v1/#")
    device = broker.connect("cam-1")
    device.publish(topic, b"forged")
    device.publish("covey/v1/d/cam-1/up/readings", b"true")  # comes after it on the same connection
    wait_until(lambda: gateway.messages, what="the device's own message")
    assert gateway.messages == [("covey/v1/d/cam-1/up/readings", b"true", False)]


def test_a_retained_message_of_another_device_is_not_replayed(broker: RunningBroker) -> None:
    gateway = broker.connect("covey-server", files=broker.gateway_files())
    gateway.publish("covey/v1/d/cam-1/down/desired", b"secret", retain=True)
    thief = broker.connect("cam-2")
    for topic in ("covey/v1/d/cam-1/down/desired", "covey/v1/d/+/down/desired", "#"):
        thief.subscribe(topic)
    assert thief.subscribe("covey/v1/d/cam-2/down/#")
    gateway.publish("covey/v1/d/cam-2/down/ack", b"end")
    wait_until(lambda: thief.messages, what="the thief's own message")
    assert [payload for _, payload, _ in thief.messages] == [b"end"]


def test_another_devices_session_gives_none_of_its_messages(broker: RunningBroker) -> None:
    gateway = broker.connect("covey-server", files=broker.gateway_files())
    victim = broker.connect("cam-1", client_id="cam-1", clean=False)
    assert victim.subscribe("covey/v1/d/cam-1/down/#")
    victim.close()
    gateway.publish("covey/v1/d/cam-1/down/command", b"queued for cam-1")
    thief = broker.connect("cam-2", client_id="cam-1", clean=False)
    assert thief.subscribe("covey/v1/d/cam-2/down/#")
    gateway.publish("covey/v1/d/cam-2/down/ack", b"end")
    gateway.publish("covey/v1/d/cam-1/down/command", b"live for cam-1")
    gateway.publish("covey/v1/d/cam-2/down/ack", b"end 2")
    wait_until(lambda: thief.payloads("covey/v1/d/cam-2/down/ack")[-1:] == [b"end 2"], what="the thief's own messages")
    assert thief.payloads("covey/v1/d/cam-1/down/command") == []


def test_a_revoked_device_drops_at_once_and_the_others_stay(broker: RunningBroker) -> None:
    gone, stays = broker.connect("cam-1"), broker.connect("cam-2")
    bulk = broker.connect("cam-1", client_id="cam-1:bulk")
    broker.allow("cam-2", "cam-3")
    wait_until(lambda: gone.disconnects and bulk.disconnects, what="the revoked device's connections to drop", timeout_s=2)
    assert stays.disconnects == 0
    assert stays.subscribe("covey/v1/d/cam-2/down/#")
    broker.connect("cam-1", expect=False)


def test_a_retired_certificate_is_refused_and_the_new_one_connects(broker: RunningBroker) -> None:
    old = broker.identity("cam-1")
    new = broker.renew("cam-1")
    broker.allow("cam-1", "cam-2")
    overlapping = [broker.connect("cam-1", client_id=f"c{number}", files=files) for number, files in enumerate((old, new))]
    assert [peer.disconnects for peer in overlapping] == [0, 0]
    first, second = broker.rights["cam-1"]
    broker.rights["cam-1"] = [replace(first, revoked_at=datetime.now(UTC)), second]
    table = [right for rights in broker.rights.values() for right in rights]
    broker.permissions.apply(table)
    broker.connect("cam-1", client_id="c3", files=old, expect=False)
    renewed = broker.connect("cam-1", client_id="c4", files=new)
    assert renewed.subscribe("covey/v1/d/cam-1/down/#")
    assert overlapping[1].disconnects == 0


def test_a_stolen_certificate_stays_dead_when_its_device_id_is_taken_again(broker: RunningBroker) -> None:
    stolen = broker.identity("cam-1")
    broker.allow("cam-2")
    broker.rights["cam-1"] = [replace(right, revoked_at=datetime.now(UTC)) for right in broker.rights["cam-1"]]
    fresh = broker.renew("cam-1")
    broker.permissions.apply([right for rights in broker.rights.values() for right in rights])
    broker.connect("cam-1", files=stolen, expect=False)
    back = broker.connect("cam-1", files=fresh)
    gateway = broker.connect("covey-server", files=broker.gateway_files())
    assert back.subscribe("covey/v1/d/cam-1/down/ack")
    gateway.publish("covey/v1/d/cam-1/down/ack", b"welcome back")
    wait_until(lambda: back.payloads("covey/v1/d/cam-1/down/ack"), what="what is for the one that has its id now")


@only_mosquitto
@pytest.mark.parametrize("client_id", ["x", "u'cam-2')", "New client connected from 1.2.3.4:5 as cam-2 (p2, c1, k30, u'cam-2').", "é"])
def test_a_session_with_any_client_id_is_found_and_ended(broker: RunningBroker, client_id: str) -> None:
    gone, stays = broker.connect("cam-1", client_id=client_id), broker.connect("cam-2")
    broker.allow("cam-2")
    wait_until(lambda: gone.disconnects, what="the revoked session to end")
    assert stays.disconnects == 0


@only_mosquitto
def test_a_revoked_session_that_is_not_found_says_and_hears_nothing(broker: RunningBroker) -> None:
    """The log is the only place that names a session; without it, the rights are gone all the same."""
    assert isinstance(broker.permissions, MosquittoPermissions)
    gateway = broker.connect("covey-server", files=broker.gateway_files())
    assert gateway.subscribe("covey/v1/d/+/up/#")
    hidden, other = broker.connect("cam-1"), broker.connect("cam-2")
    assert hidden.subscribe("covey/v1/d/cam-1/down/#")
    broker.permissions.files.log.write_bytes(b"")
    broker.allow("cam-2", "cam-3")
    hidden.publish("covey/v1/d/cam-1/up/readings", b"still there?")
    gateway.publish("covey/v1/d/cam-1/down/command", b"secret")
    other.publish("covey/v1/d/cam-2/up/readings", b"end")
    wait_until(lambda: gateway.messages, what="the other device's message")
    assert gateway.messages == [("covey/v1/d/cam-2/up/readings", b"end", False)]
    assert hidden.messages == []


def _ahead(permissions: MosquittoPermissions, *, days: int) -> MosquittoPermissions:
    """As seen by a server whose clock is days ahead."""
    return replace(permissions, clock=lambda: datetime.now(UTC) + timedelta(days=days))


@only_mosquitto
def test_a_revocation_list_is_renewed_before_it_locks_everybody_out(broker: RunningBroker) -> None:
    assert isinstance(broker.permissions, MosquittoPermissions)
    files, table = broker.permissions.files, broker.table("cam-1", "cam-2", "cam-3", LONGEST)

    def runs_out() -> datetime:
        end = x509.load_pem_x509_crl(files.crl.read_bytes()).next_update_utc
        assert end is not None
        return end

    at_first = runs_out()
    for days, is_renewed in ((1, False), (14, False), (16, True)):
        _ahead(broker.permissions, days=days).apply(table)
        assert (runs_out() > at_first) is is_renewed, days
    broker.permissions.apply(table)  # the clock goes back: a list from the future would be as bad as none
    broker.connect("cam-1")


@only_mosquitto
def test_an_expired_revocation_list_locks_everybody_out(broker: RunningBroker) -> None:
    """Why it must be renewed in time: this is what the broker does otherwise. Applying again mends it."""
    assert isinstance(broker.permissions, MosquittoPermissions)
    table = broker.table("cam-1", "cam-2")
    _ahead(broker.permissions, days=-40).apply(table)
    broker.connect("cam-2", expect=False)
    broker.permissions.apply(table)
    broker.connect("cam-2")


@only_mosquitto
def test_it_listens_nowhere_else(broker: RunningBroker) -> None:
    log = BrokerFiles.of(broker.settings).folder / "mosquitto.log"
    opened = [line.partition("Opening ")[2] for line in log.read_text().splitlines() if "Opening " in line]
    assert sorted(line.split()[0] for line in opened) == ["ipv4", "unix"], "the default listener, 1883 without TLS, stays shut"


@only_mosquitto
def test_nobody_enters_by_the_local_listener_without_its_password(broker: RunningBroker) -> None:
    assert isinstance(broker.permissions, MosquittoPermissions)
    files = broker.permissions.files
    assert stat.S_IMODE(files.folder.stat().st_mode) == 0o700
    refused = threading.Event()
    client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id="x", protocol=MQTTProtocolVersion.MQTTv311, transport="unix")
    client.on_connect = lambda _c, _u, _f, reason, _p: refused.set() if reason.is_failure else None
    client.connect(str(files.socket), 1)
    client.loop_start()
    assert refused.wait(20)
    client.disconnect()
    client.loop_stop()


def test_a_device_can_connect_as_soon_as_apply_returns(broker: RunningBroker) -> None:
    newcomers = [f"new-{number}" for number in range(5)]
    for count, name in enumerate(newcomers, start=1):
        broker.allow("cam-1", *newcomers[:count])
        broker.connect(name)


def test_the_same_table_again_disturbs_nobody(broker: RunningBroker) -> None:
    device = broker.connect("cam-1")
    files = broker.permissions.files
    table = files.users if isinstance(files, BrokerFiles) else files.crl
    before = table.stat().st_mtime_ns
    broker.allow(LONGEST, "cam-3", "cam-2", "cam-1", "cam-1")
    assert table.stat().st_mtime_ns == before
    assert device.disconnects == 0


def test_the_longest_id_connects(broker: RunningBroker) -> None:
    assert broker.connect(LONGEST).subscribe(f"covey/v1/d/{LONGEST}/down/#")


@only_embedded  # the other one knows nobody by name, only who was revoked
def test_an_unknown_device_with_a_good_certificate_is_refused(broker: RunningBroker) -> None:
    broker.connect("stranger", expect=False)


def test_no_certificate_no_connection(broker: RunningBroker) -> None:
    context = ssl.create_default_context(cafile=str(broker.settings.path("pki", "ca.crt")))
    with pytest.raises((ssl.SSLError, ConnectionError)):
        _first_answer(context, broker.port, b"\x10\x10\x00\x04MQTT\x04\x02\x00\x1e\x00\x04evil")


def _first_answer(context: ssl.SSLContext, port: int, packet: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=5) as plain, context.wrap_socket(plain, server_hostname="127.0.0.1") as tls:
        tls.sendall(packet)
        answer = tls.recv(4)  # with TLS 1.3 a client learns only here that its missing certificate was refused
        if not answer:
            raise ConnectionResetError("closed without an answer")
        return answer


def test_a_certificate_of_another_authority_is_refused(broker: RunningBroker, tmp_path: Path) -> None:
    with running_broker(tmp_path / "other") as other:
        stolen = other.identity("cam-1")
        (tmp_path / "mixed.crt").write_bytes(broker.settings.path("pki", "ca.crt").read_bytes())
        files = type(stolen)(stolen.certificate, stolen.key, tmp_path / "mixed.crt")
        broker.connect("cam-1", files=files, expect=False)


@only_embedded
def test_the_native_protocol_lets_no_device_in(broker: RunningBroker) -> None:
    """The broker's own listener cannot be switched off: with a device's certificate one gets through TLS and no further."""
    log = BrokerFiles.of(broker.settings).log.read_text("utf-8")
    port = int(log.split("Listening for client connections on 127.0.0.1:")[1].split()[0])
    files = broker.identity("cam-1")
    context = ssl.create_default_context(cafile=str(files.ca))
    context.load_cert_chain(files.certificate, files.key)
    with socket.create_connection(("127.0.0.1", port), timeout=5) as plain:
        assert plain.recv(5) == b"INFO "
        while not plain.recv(4096).endswith(b"\r\n"):
            pass
        with context.wrap_socket(plain, server_hostname="127.0.0.1") as tls:
            tls.sendall(b'CONNECT {"verbose":true,"user":"cam-1","pass":""}\r\nSUB covey.> 1\r\nPING\r\n')
            answer = tls.recv(4096)
    assert b"Authorization Violation" in answer
    assert b"PONG" not in answer


def test_the_largest_payload_passes_and_a_larger_one_ends_the_connection(broker: RunningBroker) -> None:
    gateway = broker.connect("covey-server", files=broker.gateway_files())
    assert gateway.subscribe("covey/v1/d/+/up/readings")
    device = broker.connect("cam-1")
    device.publish("covey/v1/d/cam-1/up/readings", b"x" * MAX_PAYLOAD_BYTES)
    wait_until(lambda: gateway.messages, what="the largest payload")
    device.publish("covey/v1/d/cam-1/up/readings", b"x" * (MAX_PAYLOAD_BYTES * 2))
    wait_until(lambda: device.disconnects, what="the end of the connection")
    assert len(gateway.messages) == 1


@only_embedded  # the other one writes its store now and then; the worker publishes anew what it lost
def test_retained_messages_survive_kill_9(broker: RunningBroker) -> None:
    gateway = broker.connect("covey-server", files=broker.gateway_files())
    gateway.publish("covey/v1/d/cam-1/down/desired", b"generation 4", retain=True)
    broker.process.stop(9)
    broker.process.start()
    device = broker.connect("cam-1")
    assert device.subscribe("covey/v1/d/cam-1/down/desired")
    wait_until(lambda: device.messages, what="the retained message after kill -9")
    assert device.messages == [("covey/v1/d/cam-1/down/desired", b"generation 4", True)]


def test_an_abrupt_end_publishes_the_last_will(broker: RunningBroker) -> None:
    gateway = broker.connect("covey-server", files=broker.gateway_files())
    assert gateway.subscribe("covey/v1/d/+/status")
    device = broker.connect("cam-1", will=("covey/v1/d/cam-1/status", b"offline"))
    connection = device.client.socket()
    assert isinstance(connection, socket.socket)
    connection.shutdown(socket.SHUT_RDWR)
    wait_until(lambda: gateway.messages, what="the last will")
    assert gateway.messages[0][:2] == ("covey/v1/d/cam-1/status", b"offline")


@only_embedded
def test_a_fleet_may_have_more_subscriptions_than_a_stream_takes_by_default(broker: RunningBroker) -> None:
    """Each subscription of a persistent session is a consumer in the broker; here 35 sessions of one device make as many as a fleet."""
    files, sessions, topics = broker.identity("cam-1"), 35, 30
    for session in range(sessions):
        device = broker.connect("cam-1", client_id=f"cam-1-{session}", clean=False, files=files)
        device.client.subscribe([(f"covey/v1/a/{session:032x}{topic:032x}/0", 1) for topic in range(topics)])
        wait_until(lambda device=device: len(device.grants) == topics, what="answers to all subscriptions")  # type: ignore[misc]  # bound now
        assert all(device.grants), f"session {session}"
