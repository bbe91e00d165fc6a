"""Keys and certificate requests as a device would make them, and faulty ones."""

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import NameOID

from covey_contract.ids import DeviceId
from covey_server.parts import Authority, IssuedCertificate

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey


@dataclass(frozen=True, slots=True)
class ClientFiles:
    """What a client needs for mutual TLS."""

    certificate: Path
    key: Path
    ca: Path


def make_key(curve: ec.EllipticCurve | None = None) -> ec.EllipticCurvePrivateKey:
    """A fresh EC key, P-256 unless another curve is asked for."""
    return ec.generate_private_key(curve or ec.SECP256R1())


def make_csr(name: str | list[str], *, key: PrivateKey | None = None, extra: x509.ExtensionType | None = None) -> str:
    """A certificate request for CN = `name` (several CNs for a list), PEM."""
    names = [name] if isinstance(name, str) else name
    key = key or make_key()
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, cn, _validate=False) for cn in names])
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject)
    if extra is not None:
        builder = builder.add_extension(extra, critical=False)
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    return builder.sign(key, algorithm).public_bytes(serialization.Encoding.PEM).decode()


def make_supernode_key() -> str:
    """A SuperNode's public key, OpenSSH text."""
    public = ec.generate_private_key(ec.SECP384R1()).public_key()
    return public.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode()


def private_pem(key: PrivateKey) -> bytes:
    """A key as PEM without a password."""
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def make_client(folder: Path, authority: Authority, device: str, *, now: datetime) -> ClientFiles:
    """A device's identity files, signed by the authority."""
    folder.mkdir(parents=True, exist_ok=True)
    key = make_key()
    issued = authority.sign_request(make_csr(device, key=key), device=DeviceId(device), now=now)
    return write_client(folder, authority, device, key=key, issued=issued)


def write_client(folder: Path, authority: Authority, device: str, *, key: PrivateKey, issued: IssuedCertificate) -> ClientFiles:
    """Key and certificate as files."""
    folder.mkdir(parents=True, exist_ok=True)
    files = ClientFiles(folder / f"{device}.crt", folder / f"{device}.key", folder / "ca.crt")
    files.certificate.write_text(issued.pem, "ascii")
    files.key.write_bytes(private_pem(key))
    files.ca.write_text(authority.ca_pem(), "ascii")
    return files
