"""The fleet's certificate authority: what it signs, and what it refuses to."""

import stat
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID
from tests.fakes.pki import PrivateKey, make_csr, make_key
from tests.fakes.server_parts import START

from covey_contract.errors import InvalidIdError
from covey_contract.ids import DeviceId
from covey_server.devices.authority import FileAuthority
from covey_server.errors import ConflictError, InvalidInputError, UnavailableError
from covey_server.settings import PkiSettings, Settings

CAM = DeviceId("cam-1")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(work_dir=tmp_path, pki=PkiSettings(device_days=30, server_days=90))


@pytest.fixture
def authority(settings: Settings) -> FileAuthority:
    return FileAuthority.create(settings, now=START)


def issued(authority: FileAuthority, csr: str, device: str = CAM) -> x509.Certificate:
    return x509.load_pem_x509_certificate(authority.sign_request(csr, device=DeviceId(device), now=START).pem.encode())


def test_private_keys_are_readable_by_their_owner_only(authority: FileAuthority, settings: Settings) -> None:
    authority.issue_gateway_certificate(now=START)
    for name in ("ca.key", "gateway.key"):
        assert stat.S_IMODE(settings.path("pki", name).stat().st_mode) == 0o600


def test_an_authority_is_never_replaced(authority: FileAuthority, settings: Settings) -> None:
    with pytest.raises(ConflictError):
        FileAuthority.create(settings, now=START)
    assert FileAuthority.open(settings).fingerprint() == authority.fingerprint()


@pytest.mark.parametrize("damage", ["missing", "truncated", "other"])
def test_a_damaged_authority_is_not_opened(authority: FileAuthority, settings: Settings, tmp_path: Path, damage: str) -> None:
    key = settings.path("pki", "ca.key")
    if damage == "missing":
        key.unlink()
    elif damage == "truncated":
        key.write_bytes(key.read_bytes()[:100])
    else:
        other = Settings(work_dir=tmp_path / "other")
        FileAuthority.create(other, now=START)
        key.write_bytes(other.path("pki", "ca.key").read_bytes())
    with pytest.raises(UnavailableError):
        FileAuthority.open(settings)


def test_a_creation_that_was_broken_off_is_done_again(settings: Settings) -> None:
    FileAuthority.create(settings, now=START)
    settings.path("pki", "ca.crt").unlink()  # the key is written first, the certificate after it
    FileAuthority.create(settings, now=START)
    FileAuthority.open(settings)


def test_a_device_certificate_names_the_device_and_is_for_clients_only(authority: FileAuthority) -> None:
    certificate = issued(authority, make_csr(CAM))
    assert certificate.subject.rfc4514_string() == "CN=cam-1"
    extensions = certificate.extensions
    (name,) = extensions.get_extension_for_class(x509.SubjectAlternativeName).value.get_values_for_type(x509.DNSName)
    assert f"cam-1.{certificate.serial_number:x}".startswith(name)
    assert len(name) >= len("cam-1.") + 15
    assert list(extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    assert extensions.get_extension_for_class(x509.BasicConstraints).value.ca is False
    assert certificate.not_valid_after_utc == START + timedelta(days=30)
    certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(authority.ca_pem().encode()))


@pytest.mark.parametrize(
    "wish",
    [
        x509.SubjectAlternativeName([x509.DNSName("covey-server"), x509.DNSName("cam-2")]),
        x509.BasicConstraints(ca=True, path_length=3),
        x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]),
    ],
    ids=["another name", "be an authority", "be a server"],
)
def test_what_a_request_wishes_for_is_ignored(authority: FileAuthority, wish: x509.ExtensionType) -> None:
    asked = issued(authority, make_csr(CAM, extra=wish))
    (name,) = asked.extensions.get_extension_for_class(x509.SubjectAlternativeName).value.get_values_for_type(x509.DNSName)
    assert name.startswith("cam-1.")
    assert asked.extensions.get_extension_for_class(x509.BasicConstraints).value.ca is False
    assert list(asked.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [ExtendedKeyUsageOID.CLIENT_AUTH]


@pytest.mark.parametrize("key", [make_key(ec.SECP256R1()), make_key(ec.SECP384R1())], ids=["p256", "p384"])
def test_good_keys_are_signed(authority: FileAuthority, key: ec.EllipticCurvePrivateKey) -> None:
    assert issued(authority, make_csr(CAM, key=key)).public_key() == key.public_key()


@pytest.mark.parametrize(
    "key",
    [
        rsa.generate_private_key(65537, 1024),  # noqa: S505 - the weak key is what is tested
        make_key(ec.SECP224R1()),
        make_key(ec.SECP521R1()),
        ed25519.Ed25519PrivateKey.generate(),
    ],
    ids=["rsa1024", "p224", "p521", "ed25519"],
)
def test_weak_and_foreign_keys_are_refused(authority: FileAuthority, key: PrivateKey) -> None:
    with pytest.raises(InvalidInputError, match="key must be"):
        authority.sign_request(make_csr(CAM, key=key), device=CAM, now=START)


@pytest.mark.parametrize("names", [["cam-2"], ["cam-1", "cam-2"], ["cam-1", "cam-1"], ["CAM-1"], ["cam-1 "], []])
def test_a_request_for_another_name_is_refused(authority: FileAuthority, names: list[str]) -> None:
    with pytest.raises(InvalidInputError, match="must be for CN=cam-1"):
        authority.sign_request(make_csr(names), device=CAM, now=START)


def test_a_request_that_was_changed_is_refused(authority: FileAuthority) -> None:
    lines = make_csr(CAM).splitlines()
    body = bytearray(lines[-2].encode())
    body[4] = ord("A") if body[4] != ord("A") else ord("B")  # in the signature, which stands at the end
    changed = "\n".join([*lines[:-2], body.decode(), lines[-1], ""])
    with pytest.raises(InvalidInputError):
        authority.sign_request(changed, device=CAM, now=START)


@pytest.mark.parametrize(
    "csr", ["", "nonsense", "\ud800", "ü" * 50, make_csr(CAM)[:200], "-----BEGIN CERTIFICATE REQUEST-----\n", "A" * 20_000]
)
def test_what_is_no_request_is_refused(authority: FileAuthority, csr: str) -> None:
    with pytest.raises(InvalidInputError):
        authority.sign_request(csr, device=CAM, now=START)


@pytest.mark.parametrize("device", ["covey-server", "covey-server-edge", "covey-server2"])
def test_no_device_gets_a_name_of_the_server(authority: FileAuthority, device: str) -> None:
    with pytest.raises(InvalidInputError, match="the server's own"):
        authority.sign_request(make_csr(device), device=DeviceId(device), now=START)


@pytest.mark.parametrize("device", ["a/b", "+", "#", "..", "", "x" * 65, "cam-1\n", "Cam", "cam_1"])
def test_no_certificate_for_an_id_that_is_none(authority: FileAuthority, device: str) -> None:
    with pytest.raises(InvalidIdError):
        authority.sign_request(make_csr(CAM), device=DeviceId(device), now=START)


def test_a_certificate_never_outlives_the_authority(tmp_path: Path) -> None:
    settings = Settings(work_dir=tmp_path, pki=PkiSettings(device_days=365 * 50))
    authority = FileAuthority.create(settings, now=START)
    ca = x509.load_pem_x509_certificate(authority.ca_pem().encode())
    assert issued(authority, make_csr(CAM)).not_valid_after_utc == ca.not_valid_after_utc


def test_server_certificates_hold_names_and_addresses_and_are_for_servers_only(authority: FileAuthority) -> None:
    files = authority.issue_server_certificate(["localhost", "127.0.0.1", "fleet.example"], role="edge", now=START)
    certificate = x509.load_pem_x509_certificate(files.certificate.read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert set(names.get_values_for_type(x509.DNSName)) == {"localhost", "fleet.example"}
    assert [str(address) for address in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1"]
    assert list(certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [ExtendedKeyUsageOID.SERVER_AUTH]


@pytest.mark.parametrize(
    ("names", "days", "is_new"),
    [(["localhost"], 1, False), (["localhost"], 61, True), (["localhost"], 400, True), (["localhost", "new.example"], 1, True)],
    ids=["young", "last third", "expired", "other names"],
)
def test_server_certificates_are_kept_until_they_must_be_renewed(
    authority: FileAuthority, names: list[str], days: int, *, is_new: bool
) -> None:
    before = authority.issue_server_certificate(["localhost"], role="edge", now=START).certificate.read_bytes()
    after = authority.issue_server_certificate(names, role="edge", now=START + timedelta(days=days)).certificate.read_bytes()
    assert (before != after) is is_new


@pytest.mark.parametrize("damage", ["key", "certificate"])
def test_damaged_server_certificates_are_made_again(authority: FileAuthority, damage: str) -> None:
    files = authority.issue_server_certificate(["localhost"], role="edge", now=START)
    before = files.certificate.read_bytes()
    (files.key if damage == "key" else files.certificate).write_bytes(b"half a fi")
    again = authority.issue_server_certificate(["localhost"], role="edge", now=START)
    assert again.certificate.read_bytes() != before
