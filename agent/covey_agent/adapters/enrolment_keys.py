"""`python -m covey_agent.adapters.enrolment_keys make|check FOLDER DEVICE`: keys, the certificate request, and a look at the answer.

A short-lived process of its own, because only it needs `cryptography`. It reads and writes files in FOLDER, which nobody else can
read; no key ever passes through a pipe. Exit code 0, or 1 with the reason on standard error.
"""

import os
import sys
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

_ARGUMENTS = 4


def main(arguments: list[str]) -> None:
    """Dispatch."""
    if len(arguments) != _ARGUMENTS or arguments[1] not in ("make", "check"):
        raise SystemExit("usage: enrolment_keys make|check FOLDER DEVICE")
    _, action, folder, device = arguments
    try:
        (make_keys if action == "make" else check_certificate)(Path(folder), device)
    except ValueError as exc:
        raise SystemExit(str(exc)) from exc


def make_keys(folder: Path, device: str) -> None:
    """Write device.key (P-256), device.csr for it, supernode.key and supernode.pub (P-384, OpenSSH, as Flower wants them)."""
    make_device_key(folder, device)
    node = ec.generate_private_key(ec.SECP384R1())
    private, plain = serialization.PrivateFormat, serialization.NoEncryption()
    _write(folder / "supernode.key", node.private_bytes(serialization.Encoding.PEM, private.OpenSSH, plain))
    public = node.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    _write(folder / "supernode.pub", public + b"\n")


def make_device_key(folder: Path, device: str) -> None:
    """Write device.key (P-256) and device.csr, the request for its certificate."""
    key = ec.generate_private_key(ec.SECP256R1())
    request = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, device)]))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(device)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    _write(folder / "device.key", private)
    _write(folder / "device.csr", request.public_bytes(serialization.Encoding.PEM))


def check_certificate(folder: Path, device: str, *, pem: bytes | None = None, ca: Path | None = None) -> None:
    """Raise ValueError unless device.crt (or `pem`) is for this device and this key, signed by ca.crt, and not expired."""
    certificate = x509.load_pem_x509_certificate((folder / "device.crt").read_bytes() if pem is None else pem)
    authority = x509.load_pem_x509_certificate((ca or folder / "ca.crt").read_bytes())
    key = serialization.load_pem_private_key((folder / "device.key").read_bytes(), None)
    names = [attribute.value for attribute in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    if names != [device]:
        raise ValueError(f"expected a certificate for {device}, got one for {names}")
    form = (serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    if certificate.public_key().public_bytes(*form) != key.public_key().public_bytes(*form):
        raise ValueError("the certificate is for another key than the one made here")
    if certificate.not_valid_after_utc < datetime.now(UTC):
        raise ValueError(f"the certificate has expired on {certificate.not_valid_after_utc:%Y-%m-%d}")
    try:
        certificate.verify_directly_issued_by(authority)
    except Exception as exc:  # the library names several of its own, all of which mean the same here
        raise ValueError(f"the certificate is not signed by the fleet's CA: {exc or type(exc).__name__}") from exc


def _write(path: Path, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


if __name__ == "__main__":
    main(sys.argv)
