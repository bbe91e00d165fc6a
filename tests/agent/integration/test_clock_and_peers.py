"""The daemon as a real process with a wrong clock or a wrong server: it says which, waits, changes nothing, and recovers."""

import json
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from tests.fakes.agent.daemon import AckingServer, Daemon, make_identity
from tests.fakes.nats_broker import RunningBroker, running_broker, wait_until
from tests.fakes.services import require

from covey_agent.commands.state import open_state

pytestmark = [pytest.mark.broker, pytest.mark.slow]
SHIM = Path(__file__).parents[2] / "fakes" / "wrong_clock.c"
DAY_S = 86_400


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningBroker]:
    with running_broker(tmp_path_factory.mktemp("broker"), devices=["cam-1"]) as broker:
        yield broker


@pytest.fixture
def daemon(tmp_path: Path, broker: RunningBroker) -> Iterator[Daemon]:
    make_identity(tmp_path / "state", broker, "cam-1")
    daemon = Daemon(tmp_path / "state")
    yield daemon
    daemon.stop()


def reason(daemon: Daemon) -> str:
    """Why it is not connected, as `status` says."""
    status = daemon.status()
    return "" if status["connected"] else str(status["connection"])


def wait_reason(daemon: Daemon, words: str) -> str:
    wait_until(lambda: words in reason(daemon), what=f"a status that says {words!r}; it says {reason(daemon)!r}", timeout_s=60)
    return reason(daemon)


def floor_of(daemon: Daemon) -> int:
    database = open_state(daemon.state_dir)
    assert database is not None
    try:
        return int(database.query("SELECT data FROM value WHERE key = 'time'")[0][0])  # type: ignore[call-overload, no-any-return]  # bytes
    except IndexError:
        return 0
    finally:
        database.close()


def test_a_clock_in_1970_is_told_as_such_and_jumps_back_and_forth_lose_nothing(
    daemon: Daemon, broker: RunningBroker, tmp_path: Path
) -> None:
    require(shutil.which("gcc"), "gcc")
    library = tmp_path / "wrong_clock.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-o", str(library), str(SHIM), "-ldl"], check=True)
    server = AckingServer(broker)
    server.connect()
    clock = tmp_path / "clock"

    def set_clock(text: str) -> None:
        draft = tmp_path / "clock.new"
        draft.write_text(text)
        draft.rename(clock)

    before = {path.name: path.read_bytes() for path in (daemon.state_dir / "identity").iterdir()}
    set_clock("@86400")
    daemon.environment = {
        "LD_PRELOAD": str(library),
        "WRONG_CLOCK": str(clock),
        "COVEY_AGENT_READINGS_MAX_AGE_DAYS": "1",
    }
    daemon.start()
    wait_until((daemon.state_dir / "run" / "live.json").exists, what="the daemon")
    assert wait_reason(daemon, "clock: it is 1970-01-02").startswith("clock:")
    assert floor_of(daemon) == 0  # 1970 is no time to remember
    set_clock("+0")
    wait_until(lambda: daemon.status()["connected"], what="a connection with the right time", timeout_s=90)
    wait_until(lambda: len(server.stored) > 5, what="readings, those from 1970 among them")
    server.deaf = True
    set_clock(f"+{9000 * DAY_S}")  # ahead: everything that waits looks older than a day
    known = len(server.stored)
    wait_until(lambda: len(server.stored) > known, what="readings from the future")
    set_clock(f"-{4000 * DAY_S}")
    wait_until(lambda: daemon.status()["readings_on_disk"], what="readings that wait", timeout_s=90)
    set_clock("+0")
    server.deaf = False
    wait_until(lambda: not daemon.status()["readings_on_disk"], what="everything acknowledged", timeout_s=90)
    marks = {reading.values.get("clock", "set") for reading in server.stored.values()}
    assert marks >= {"set", "behind"}
    numbers = sorted(sequence for _, sequence in server.stored)
    assert numbers == list(range(numbers[0], numbers[-1] + 1)), "a reading was lost"
    assert daemon.status()["readings_lost"] == 0
    assert {path.name: path.read_bytes() for path in (daemon.state_dir / "identity").iterdir() if path.is_file()} == before


class Impostor:
    """A TLS listener with a certificate of one's own making."""

    def __init__(self, folder: Path, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
        plain = serialization.NoEncryption()
        folder.mkdir()
        (folder / "key").write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain))
        (folder / "crt").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(folder / "crt", folder / "key")
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._socket.getsockname()[1])
        self.calls = 0
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                plain, _ = self._socket.accept()
            except OSError:
                return
            self.calls += 1
            try:
                with self._context.wrap_socket(plain, server_side=True) as tls:
                    tls.recv(1)
            except OSError:
                plain.close()

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


def certificate_of(broker: RunningBroker, key: ec.EllipticCurvePrivateKey, *, wrong: str) -> x509.Certificate:
    """A server's certificate by the fleet's own CA, with one thing wrong."""
    pki = broker.settings.path("pki")
    ca = x509.load_pem_x509_certificate((pki / "ca.crt").read_bytes())
    ca_key = serialization.load_pem_private_key((pki / "ca.key").read_bytes(), None)
    if wrong == "another CA":
        ca_key = ec.generate_private_key(ec.SECP256R1())
    assert isinstance(ca_key, ec.EllipticCurvePrivateKey)
    now = datetime.now(UTC)
    begin, end = {
        "not yet valid": (now + timedelta(days=2), now + timedelta(days=30)),
        "expired": (now - timedelta(days=30), now - timedelta(days=2)),
    }.get(wrong, (now - timedelta(days=1), now + timedelta(days=1)))
    name = x509.DNSName("elsewhere.example") if wrong == "another host" else x509.DNSName("localhost")
    builder = x509.CertificateBuilder().subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "broker")]))
    builder = builder.issuer_name(ca.subject).public_key(key.public_key()).serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(begin).not_valid_after(end)
    names = [name] if wrong == "another host" else [name, x509.IPAddress(ip_address("127.0.0.1"))]
    return builder.add_extension(x509.SubjectAlternativeName(names), critical=False).sign(ca_key, hashes.SHA256())


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ("not yet valid", "clock: it is "),
        ("expired", "clock: it is "),
        ("another host", "wrong server: the certificate at localhost"),
        ("another CA", "wrong server: the certificate at localhost"),
    ],
)
def test_a_wrong_server_is_named_and_nothing_changes(daemon: Daemon, broker: RunningBroker, tmp_path: Path, wrong: str, words: str) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    impostor = Impostor(tmp_path / "impostor", certificate_of(broker, key, wrong=wrong), key)
    before = {path.name: path.read_bytes() for path in (daemon.state_dir / "identity").iterdir()}
    daemon.environment = {"COVEY_AGENT_BROKER_PORT": str(impostor.port)}
    daemon.start()
    wait_until((daemon.state_dir / "run" / "live.json").exists, what="the daemon")
    wait_reason(daemon, words)
    wait_until(lambda: impostor.calls >= 2, what="another try")
    assert {path.name: path.read_bytes() for path in (daemon.state_dir / "identity").iterdir()} == before
    assert daemon.stop() == 0
    impostor.close()
    daemon.environment = {}
    daemon.start()
    wait_until(lambda: daemon.status()["connected"], what="a connection to the right server", timeout_s=60)


@pytest.mark.parametrize(
    ("host", "port", "words"),
    [
        ("no-such-host.invalid", 8883, "network: the name no-such-host.invalid cannot be resolved"),
        ("localhost", 1, "network: nobody listens"),
    ],
)
def test_a_server_that_is_not_there_is_named(daemon: Daemon, host: str, port: int, words: str) -> None:
    daemon.environment = {"COVEY_AGENT_BROKER_HOST": host, "COVEY_AGENT_BROKER_PORT": str(port)}
    daemon.start()
    wait_until((daemon.state_dir / "run" / "live.json").exists, what="the daemon")
    wait_reason(daemon, words)
    assert daemon.process is not None
    assert daemon.process.poll() is None


@pytest.mark.parametrize("kind", ["embedded", "mosquitto"])
def test_a_revoked_certificate_is_named(tmp_path: Path, kind: str) -> None:
    require(kind == "embedded" or shutil.which("mosquitto", path="/usr/sbin:/usr/bin:/usr/local/sbin"), kind)
    with running_broker(tmp_path / "server", devices=["cam-1"], kind=kind) as broker:
        make_identity(tmp_path / "state", broker, "cam-1")
        daemon = Daemon(tmp_path / "state")
        daemon.start()
        try:
            wait_until(lambda: (daemon.state_dir / "run" / "live.json").exists() and daemon.status()["connected"], what="a connection")
            broker.allow()
            wait_until(lambda: not daemon.status()["connected"], what="the end of its session", timeout_s=20)
            if kind == "mosquitto":
                wait_reason(daemon, "certificate: this device's certificate was revoked")
            assert json.loads((daemon.state_dir / "identity" / "identity.json").read_text())["device"] == "cam-1"
        finally:
            daemon.stop()
