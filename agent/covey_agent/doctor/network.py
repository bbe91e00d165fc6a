"""Checks of the way to the server, from the name to the login, each step only if it can be told apart from the one before.

All of it is done anew and beside a running agent, under a client id of its own; nothing is published.
"""

import hashlib
import http.client
import socket
import ssl
from contextlib import closing
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from urllib.parse import urlsplit

from covey_agent.adapters.connection_reasons import explain, explain_alert
from covey_agent.core.jobs import BrokerAddress
from covey_agent.doctor.case import Case
from covey_agent.doctor.finding import Finding, ok, problem, skipped, warning
from covey_agent.workers.connection import Connection, LinkSettings
from covey_agent.workers.errors import NetworkError
from covey_agent.workers.patience import PatienceSettings
from covey_contract.ids import DeviceId
from covey_contract.topics import Channel, device_topic

NOT_ENROLLED = "not enrolled"
CLOCK_WARNING_S, CLOCK_PROBLEM_S = 60, 3600


def check_names(case: Case) -> Finding:
    """The names of broker and server can be resolved."""
    if case.identity is None:
        return skipped(NOT_ENROLLED)
    hosts = dict.fromkeys((case.identity.file.mqtt_host, urlsplit(case.identity.file.url).hostname or ""))
    found = []
    for host in hosts:
        try:
            answers = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as exc:
            return problem(
                f"the name {host} cannot be resolved: {exc}",
                "look at /etc/resolv.conf and the network (resolvectl status); or name an address that works in [broker] host",
            )
        found.append(f"{host} is {answers[0][4][0]}")
    return ok(", ".join(found))


def check_broker_port(case: Case) -> Finding:
    """Somebody listens where the broker should be."""
    if case.identity is None:
        return skipped(NOT_ENROLLED)
    host, port = case.identity.file.mqtt_host, case.identity.file.mqtt_port
    return _check_port(case, host, port, "MQTT over TLS; [broker] host and port name another way, e.g. a tunnel")


def check_server_port(case: Case) -> Finding:
    """Somebody listens where the server's HTTPS address should be."""
    if case.identity is None:
        return skipped(NOT_ENROLLED)
    parts = urlsplit(case.identity.file.url)
    return _check_port(case, parts.hostname or "", parts.port or 443, "HTTPS, by which certificates and large files come")


def check_login(case: Case) -> Finding:
    """The broker is the fleet's, and lets this device in and listen."""
    if case.identity is None:
        return skipped(NOT_ENROLLED)
    broker = case.identity.broker
    trouble = _shake_hands(broker, case.timeout_s)
    if trouble:
        return problem(trouble, _advise(trouble))
    patience = PatienceSettings(first_wait_s=0.5, least_wait_s=0.5, most_wait_s=1.0, patience_s=case.timeout_s)
    connection = Connection(broker, role="doctor", settings=LinkSettings(connect=patience, connect_timeout_s=case.timeout_s))
    try:
        connection.subscribe(device_topic(DeviceId(broker.device), Channel.ACK))
    except NetworkError as exc:
        return problem(str(exc), "ask an operator whether this device was revoked: covey device show NAME")
    finally:
        connection.close()
    return ok(f"{broker.host}:{broker.port} knows {broker.device}")


def check_server(case: Case) -> Finding:
    """The server's HTTPS address answers as the fleet that this device is of."""
    if case.identity is None:
        return skipped(NOT_ENROLLED)
    trouble, pem, _date = _fetch_authority(case)
    if trouble:
        return problem(trouble, _advise(trouble))
    try:
        fingerprint = hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem)).hexdigest()
        expected = hashlib.sha256(ssl.PEM_cert_to_DER_cert((case.identity.folder / "ca.crt").read_text("ascii"))).hexdigest()
    except (OSError, ValueError) as exc:
        return problem(f"what {case.identity.file.url} presents as its CA cannot be read: {exc}", "is it a Covey server? Ask an operator")
    if fingerprint != expected:
        return problem(
            f"{case.identity.file.url} is of the fleet {fingerprint[:16]}..., this device of {expected[:16]}...",
            "the server was set up anew, or it is another one: have the device invited again",
        )
    return ok(f"{case.identity.file.url} is of this fleet")


def check_clock_difference(case: Case) -> Finding:
    """This machine's clock and the server's agree."""
    if case.identity is None:
        return skipped(NOT_ENROLLED)
    trouble, _pem, date = _fetch_authority(case)
    if trouble or date is None:
        return skipped("the server does not tell its time")
    seconds = (datetime.now(UTC) - date).total_seconds()
    text = f"{abs(seconds):.0f} s {'ahead of' if seconds > 0 else 'behind'} the server"
    advice = "set this machine's clock, or the server's: sudo timedatectl set-ntp true"
    if abs(seconds) > CLOCK_PROBLEM_S:
        return problem(text, advice)
    return warning(text, advice) if abs(seconds) > CLOCK_WARNING_S else ok(text)


def _check_port(case: Case, host: str, port: int, purpose: str) -> Finding:
    try:
        socket.create_connection((host, port), timeout=case.timeout_s).close()
    except socket.gaierror:
        return skipped(f"the name {host} cannot be resolved")
    except ConnectionRefusedError:
        return problem(f"nobody listens at {host}:{port}", f"is the server running, and is this its port? It is for {purpose}")
    except TimeoutError:
        return problem(
            f"no answer from {host}:{port} within {case.timeout_s:g} s", f"a firewall in between? Let {port}/tcp out; it is for {purpose}"
        )
    except (OSError, UnicodeError) as exc:
        return problem(f"{host}:{port} cannot be reached: {exc}", "look at the network: ip route, ip link")
    return ok(f"{host}:{port} answers")


def _shake_hands(broker: BrokerAddress, timeout_s: float) -> str:
    """What is wrong with the TLS connection, in words; empty if nothing is. A refused certificate shows only after the handshake."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_verify_locations(broker.ca_file)
        context.load_cert_chain(broker.cert_file, broker.key_file)
    except (OSError, ssl.SSLError) as exc:
        return f"certificate: the keys cannot be used: {exc}"
    try:
        with (
            closing(socket.create_connection((broker.host, broker.port), timeout=timeout_s)) as plain,
            context.wrap_socket(plain, server_hostname=broker.host) as tls,
        ):
            return _wait_for_alert(tls)
    except (OSError, UnicodeError) as exc:
        return explain(exc, host=broker.host, port=broker.port)


def _wait_for_alert(tls: ssl.SSLSocket) -> str:
    """A server that refuses says so at once; one that accepts waits for the client to begin."""
    tls.settimeout(1.0)
    try:
        tls.recv(1)
    except TimeoutError:
        return ""
    except ssl.SSLError as exc:
        return explain_alert(str(exc)) or f"certificate: the broker ended the connection: {exc.reason or exc}"
    except ConnectionError:
        return ""  # closed without a word: the login says more
    return ""


def _fetch_authority(case: Case) -> tuple[str, str, datetime | None]:
    """(what is wrong, the CA that the server presents, its time)."""
    assert case.identity is not None  # noqa: S101  # its callers have looked
    file = case.identity.file
    parts = urlsplit(file.url)
    host, port = parts.hostname or "", parts.port or 443
    try:
        context = ssl.create_default_context(cafile=str(Path(case.identity.broker.ca_file)))
        connection = http.client.HTTPSConnection(host, port, timeout=case.timeout_s, context=context)
        with closing(connection):
            connection.request("GET", parts.path.rstrip("/") + "/edge/v1/ca.pem")
            response = connection.getresponse()
            body = response.read(64 * 1024)
            date = response.getheader("Date")
    except (OSError, UnicodeError) as exc:
        return explain(exc, host=host, port=port), "", None
    except http.client.HTTPException as exc:
        return f"wrong server: {file.url} does not speak HTTP ({type(exc).__name__})", "", None
    if response.status != http.client.OK:
        return f"wrong server: {file.url} answered {response.status} when asked for the fleet's CA", "", None
    return "", body.decode("ascii", "replace"), _parse_date(date)


def _parse_date(text: str | None) -> datetime | None:
    try:
        return parsedate_to_datetime(text).astimezone(UTC) if text else None
    except ValueError:
        return None


def _advise(trouble: str) -> str:
    kind = trouble.partition(":")[0]
    return {
        "network": "look at the two checks above",
        "clock": "set this machine's clock: sudo timedatectl set-ntp true; if it is right, the server's certificate has ended",
        "wrong server": "somebody else answers there: look at [broker] host and port, at the name's address, and at proxies in between",
        "certificate": "ask an operator whether this device was revoked: covey device show NAME; if so: covey-agent enroll --replace",
    }.get(kind, "tell an operator")
