"""The server's enrolment edge: a real TLS listener with a real CA, and every way to answer wrongly.

with EnrolmentEdge(tmp_path) as edge:
    token = edge.token("cam-1")
"""

import base64
import hashlib
import json
import ssl
import threading
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

ROOT = base64.b64encode(json.dumps({"signed": {"_type": "root", "version": 1}, "signatures": []}).encode()).decode()


class Authority:
    """A CA that signs what it is asked to."""

    @classmethod
    def load(cls, pki: Path) -> Self:
        """A fleet's own CA, from the server's files."""
        authority = cls("fleet CA")
        key = serialization.load_pem_private_key((pki / "ca.key").read_bytes(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        authority.key, authority.certificate = key, x509.load_pem_x509_certificate((pki / "ca.crt").read_bytes())
        authority.name = authority.certificate.subject
        return authority

    def __init__(self, name: str) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = self._builder(self.name, self.key.public_key()).add_extension(
            x509.BasicConstraints(ca=True, path_length=0), critical=True
        )
        self.certificate = builder.sign(self.key, hashes.SHA256())

    def pem(self) -> str:
        return self.certificate.public_bytes(serialization.Encoding.PEM).decode()

    def fingerprint(self) -> str:
        return hashlib.sha256(self.certificate.public_bytes(serialization.Encoding.DER)).hexdigest()

    def sign(self, name: str, key: ec.EllipticCurvePublicKey, *, days: int = 30) -> str:
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        names = x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.IPAddress(ip_address("127.0.0.1"))])
        builder = self._builder(subject, key, days=days).add_extension(names, critical=False)
        return builder.sign(self.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePublicKey, *, days: int = 30) -> x509.CertificateBuilder:
        now = datetime.now(UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=60))
            .not_valid_after(now + timedelta(days=days))
        )


class EnrolmentEdge:
    """`misbehave` changes the answer; `requests` are the bodies that came."""

    def __init__(self, folder: Path, authority: Authority | None = None) -> None:
        self.authority = authority or Authority("fleet CA")
        self.folder = folder
        self.requests: list[dict[str, Any]] = []
        self.paths: list[str] = []
        self.answer: dict[str, Any] = {}
        self.problem: tuple[int, bytes] | None = None
        self.sign_name = ""
        self.sign_days = 30
        self.sign_by = self.authority
        self.own_key = False

    def __enter__(self) -> Self:
        key = ec.generate_private_key(ec.SECP256R1())
        (self.folder / "edge.crt").write_text(self.authority.sign("edge", key.public_key()))
        plain = serialization.NoEncryption()
        pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
        (self.folder / "edge.key").write_bytes(pem)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.folder / "edge.crt", self.folder / "edge.key")
        edge = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                edge.paths.append(self.path)
                self._send(200, edge.authority.pem().encode())

            def do_POST(self) -> None:
                edge.paths.append(self.path)
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                edge.requests.append(request)
                self._send(*(edge.problem or (200, json.dumps(edge.respond(request)).encode())))

            def _send(self, status: int, body: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # the base class's name
                """Quiet."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    @property
    def url(self) -> str:
        return f"https://localhost:{self.server.server_address[1]}"

    def token(self, device: str = "cam-1", **changes: str) -> str:
        """An invitation."""
        content = {"url": self.url, "fp": self.authority.fingerprint(), "t": "secret-1", "id": device, **changes}
        return "covey1." + base64.urlsafe_b64encode(json.dumps(content).encode()).decode().rstrip("=")

    def respond(self, request: dict[str, Any]) -> dict[str, Any]:
        """The right answer, as far as nothing was changed."""
        csr = x509.load_pem_x509_csr(request["csr"].encode())
        assert csr.is_signature_valid
        key = ec.generate_private_key(ec.SECP256R1()).public_key() if self.own_key else csr.public_key()
        assert isinstance(key, ec.EllipticCurvePublicKey)
        return {
            "certificate": self.sign_by.sign(self.sign_name or request["device"], key, days=self.sign_days),
            "ca": self.authority.pem(),
            "tuf_root": ROOT,
            "mqtt": {"host": "localhost", "port": 8883},
            "fleet_api": "localhost:9443",
            "device": request["device"],
            **self.answer,
        }
