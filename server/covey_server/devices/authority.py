"""The fleet's certificate authority, kept in files of the work folder's `pki/`.

    authority = FileAuthority.create(settings, now=utc_now())   # once, by `covey init`
    authority = FileAuthority.open(settings)

- `ca.key` (P-256, mode 0600) signs; `ca.crt` is what devices pin at enrolment by its fingerprint.
- A device's certificate says nothing that the device asked for: subject, names, use and time all come from here. Only the
  public key is taken from the request, after its signature, kind and size were checked.
- Device certificates are for clients only and server certificates for servers only, so that neither can play the other.
"""

import hashlib
import ipaddress
import os
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Self

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from covey_contract.ids import DeviceId
from covey_server.devices.rules import SERVER_NAME, parse_new_device_id
from covey_server.errors import ConflictError, InvalidInputError, UnavailableError
from covey_server.parts import IssuedCertificate
from covey_server.settings import PkiSettings, Settings

_CA_YEARS = 10
_MAX_CSR_CHARS = 16_384
_MAX_RSA_BITS = 8192  # checking a larger signature is work that a stranger could order
_BACKDATE = timedelta(hours=1)  # a device's clock may be behind
_USER_SERIAL_CHARS = 16  # of the serial number in a certificate's DNS name: 64 bits
_CURVES = (ec.SECP256R1, ec.SECP384R1)
_HASHES = (hashes.SHA256, hashes.SHA384, hashes.SHA512)
PublicKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey


@dataclass(frozen=True, slots=True)
class KeyFiles:
    """A certificate and its private key, as files."""

    certificate: Path
    key: Path
    ca: Path


class FileAuthority:
    """The authority whose key lies in the work folder."""

    def __init__(self, folder: Path, *, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate, validity: PkiSettings) -> None:
        self._folder = folder
        self._key = key
        self._certificate = certificate
        self._validity = validity

    @classmethod
    def create(cls, settings: Settings, *, now: datetime) -> Self:
        """Make the fleet's key and certificate. Raises ConflictError if there is one: replacing it would lock every device out."""
        folder = settings.path("pki")
        if (folder / "ca.crt").exists():
            raise ConflictError(f"{folder} holds a certificate authority already")
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = _self_signed(key, settings.fleet_name, now=now)
        write_private(folder / "ca.key", _private_pem(key))  # first: a key without its certificate has signed nothing
        _write(folder / "ca.crt", certificate.public_bytes(serialization.Encoding.PEM), mode=0o644)
        return cls(folder, key=key, certificate=certificate, validity=settings.pki)

    @classmethod
    def open(cls, settings: Settings) -> Self:
        """Read the fleet's key and certificate. Raises UnavailableError if they are missing, damaged or do not match."""
        folder = settings.path("pki")
        try:
            key = serialization.load_pem_private_key((folder / "ca.key").read_bytes(), None)
            certificate = x509.load_pem_x509_certificate((folder / "ca.crt").read_bytes())
        except (OSError, ValueError, TypeError) as exc:
            raise UnavailableError(f"the certificate authority in {folder} cannot be read: {exc}") from exc
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
            raise UnavailableError(f"ca.key and ca.crt in {folder} do not belong together")
        return cls(folder, key=key, certificate=certificate, validity=settings.pki)

    def ca_pem(self) -> str:
        """The CA certificate."""
        return self._certificate.public_bytes(serialization.Encoding.PEM).decode()

    def fingerprint(self) -> str:
        """sha256 of the CA certificate's DER, lower-case hex."""
        return self._certificate.fingerprint(hashes.SHA256()).hex()

    def sign_request(self, csr_pem: str, *, device: DeviceId, now: datetime) -> IssuedCertificate:
        """Issue a client certificate. Raises InvalidInputError for a bad CSR or one for another name."""
        parse_new_device_id(device)
        public_key = _checked_key(csr_pem, device)
        serial = x509.random_serial_number()
        # A name of its own for each certificate: a broker that knows users only, and no revocation list, can then tell the device's
        # old certificate from its new one. A device id has no dot, so no device can be called like another one's certificate.
        user = f"{device}.{serial:x}"[: len(device) + 1 + _USER_SERIAL_CHARS]
        certificate = self._issue(
            device,
            public_key,
            names=[x509.DNSName(user)],
            use=ExtendedKeyUsageOID.CLIENT_AUTH,
            days=self._validity.device_days,
            now=now,
            serial=serial,
        )
        return IssuedCertificate(
            pem=certificate.public_bytes(serialization.Encoding.PEM).decode(),
            serial=f"{serial:x}",
            user=user,
            key_digest=_digest_of_key(public_key),
            issued_at=now,
            expires_at=certificate.not_valid_after_utc,
        )

    def key_digest(self, csr_pem: str, *, device: DeviceId) -> str:
        """sha256 of the public key in a request that is valid for this device. Raises InvalidInputError."""
        return _digest_of_key(_checked_key(csr_pem, device))

    def sign_revocations(self, serials: Iterable[tuple[str, datetime]], *, now: datetime, next_update: datetime) -> bytes:
        """The certificate revocation list (PEM) of these serials (hex) and when each was revoked."""
        builder = x509.CertificateRevocationListBuilder(self._certificate.subject, now - _BACKDATE, next_update)
        for serial, revoked_at in serials:
            entry = x509.RevokedCertificateBuilder(int(serial, 16), revoked_at)
            builder = builder.add_revoked_certificate(entry.build())
        builder = builder.add_extension(x509.CRLNumber(int(now.timestamp() * 1000)), critical=False)
        return builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    def issue_server_certificate(self, names: Iterable[str], *, role: str, now: datetime) -> KeyFiles:
        """The key and certificate of one of our own listeners (`edge`, `broker`, `superlink`) for these host names and addresses.

        Made once and kept; made anew when the names have changed or a third of its life is left.
        """
        wanted = sorted({_general_name(name) for name in names}, key=repr)
        return self._own_pair(role, f"{SERVER_NAME}-{role}", wanted, use=ExtendedKeyUsageOID.SERVER_AUTH, now=now)

    def issue_gateway_certificate(self, *, now: datetime) -> KeyFiles:
        """The client certificate by which the server's own MQTT gateway is known to the broker."""
        return self._own_pair("gateway", SERVER_NAME, [x509.DNSName(SERVER_NAME)], use=ExtendedKeyUsageOID.CLIENT_AUTH, now=now)

    def _own_pair(
        self, role: str, common_name: str, names: list[x509.GeneralName], *, use: x509.ObjectIdentifier, now: datetime
    ) -> KeyFiles:
        files = KeyFiles(self._folder / f"{role}.crt", self._folder / f"{role}.key", self._folder / "ca.crt")
        if not self._is_current(files, names, now=now):
            key = ec.generate_private_key(ec.SECP256R1())
            certificate = self._issue(common_name, key.public_key(), names=names, use=use, days=self._validity.server_days, now=now)
            write_private(files.key, _private_pem(key))
            _write(files.certificate, certificate.public_bytes(serialization.Encoding.PEM), mode=0o644)
        return files

    def _is_current(self, files: KeyFiles, names: list[x509.GeneralName], *, now: datetime) -> bool:
        try:
            certificate = x509.load_pem_x509_certificate(files.certificate.read_bytes())
            key = serialization.load_pem_private_key(files.key.read_bytes(), None)
            certificate.verify_directly_issued_by(self._certificate)
            present = list(certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
        except (OSError, ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound):
            return False  # missing, damaged or of another authority: made again
        life = certificate.not_valid_after_utc - certificate.not_valid_before_utc
        return key.public_key() == certificate.public_key() and present == names and now < certificate.not_valid_after_utc - life / 3

    def _issue(
        self,
        common_name: str,
        public_key: PublicKey,
        *,
        names: list[x509.GeneralName],
        use: x509.ObjectIdentifier,
        days: int,
        now: datetime,
        serial: int | None = None,
    ) -> x509.Certificate:
        is_rsa = isinstance(public_key, rsa.RSAPublicKey)
        builder = (
            x509.CertificateBuilder()
            .subject_name(_name(common_name))
            .issuer_name(self._certificate.subject)
            .public_key(public_key)
            .serial_number(serial or x509.random_serial_number())
            .not_valid_before(now - _BACKDATE)
            .not_valid_after(min(now + timedelta(days=days), self._certificate.not_valid_after_utc))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(digital_signature=True, key_encipherment=is_rsa), critical=True)
            .add_extension(x509.ExtendedKeyUsage([use]), critical=False)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
        )
        return builder.sign(self._key, hashes.SHA256())


def _digest_of_key(key: PublicKey) -> str:
    return hashlib.sha256(key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def _checked_key(csr_pem: str, device: DeviceId) -> PublicKey:
    """The public key of a request that is whole, signed by its own key, and for exactly this device."""
    if len(csr_pem) > _MAX_CSR_CHARS:
        raise InvalidInputError(f"the certificate request has {len(csr_pem)} characters, at most {_MAX_CSR_CHARS} are allowed")
    try:
        request = x509.load_pem_x509_csr(csr_pem.encode("ascii"))
        public_key = request.public_key()
        algorithm = request.signature_hash_algorithm
        names = [str(attribute.value) for attribute in request.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    except (ValueError, UnsupportedAlgorithm) as exc:
        raise InvalidInputError(f"expected a PEM certificate request (PKCS #10): {exc}") from exc
    if names != [device]:
        raise InvalidInputError(f"the certificate request must be for CN={device}, got {names!r:.200}")
    if isinstance(public_key, ec.EllipticCurvePublicKey):
        is_good_key = isinstance(public_key.curve, _CURVES)
    else:
        is_good_key = isinstance(public_key, rsa.RSAPublicKey) and 2048 <= public_key.key_size <= _MAX_RSA_BITS
    if not is_good_key or not isinstance(public_key, ec.EllipticCurvePublicKey | rsa.RSAPublicKey):
        raise InvalidInputError("the key must be EC P-256 or P-384, or RSA of 2048 to 8192 bits")
    if not isinstance(algorithm, _HASHES) or not request.is_signature_valid:
        raise InvalidInputError("the certificate request's signature is not valid")
    return public_key


def _self_signed(key: ec.EllipticCurvePrivateKey, fleet_name: str, *, now: datetime) -> x509.Certificate:
    public_key = key.public_key()
    builder = (
        x509.CertificateBuilder()
        .subject_name(_name(f"{fleet_name} fleet CA"))
        .issuer_name(_name(f"{fleet_name} fleet CA"))
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATE)
        .not_valid_after(now + timedelta(days=365 * _CA_YEARS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(key_cert_sign=True, crl_sign=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    )
    return builder.sign(key, hashes.SHA256())


def _key_usage(
    *, digital_signature: bool = False, key_encipherment: bool = False, key_cert_sign: bool = False, crl_sign: bool = False
) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        content_commitment=False,
        key_encipherment=key_encipherment,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        encipher_only=False,
        decipher_only=False,
    )


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def write_private(path: Path, data: bytes) -> None:
    """Write a secret that only this user may read, whole or not at all."""
    _write(path, data, mode=0o600)


def _write(path: Path, data: bytes, *, mode: int) -> None:
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.unlink(missing_ok=True)
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
