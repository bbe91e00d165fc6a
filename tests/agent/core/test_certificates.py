"""The little that is read of a certificate without cryptography, against cryptography's own reading."""

from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from covey_agent.core.certificates import DAY_MS, Validity, read_validity

EC, RSA = ec.generate_private_key(ec.SECP256R1()), rsa.generate_private_key(65537, 2048)


def make(
    begin: datetime, end: datetime, *, serial: int, key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey = EC, name: str = "cam-1"
) -> str:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(key.public_key()).serial_number(serial)
    certificate = builder.not_valid_before(begin).not_valid_after(end).sign(key, hashes.SHA256())
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


@pytest.mark.parametrize("key", [EC, RSA], ids=["ec", "rsa"])
@pytest.mark.parametrize("serial", [1, 127, 128, 255, 2**63, 2**158 + 12345])
@pytest.mark.parametrize("year", [1970, 1999, 2026, 2049, 2050, 9990])
def test_number_and_times_are_read_as_cryptography_reads_them(
    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey, serial: int, year: int
) -> None:
    begin = datetime(year, 3, 4, 5, 6, 7, tzinfo=UTC)
    pem = make(begin, begin + timedelta(days=1000), serial=serial, key=key, name="n" * 60)
    theirs = x509.load_pem_x509_certificate(pem.encode())
    mine = read_validity(pem)
    assert mine.serial == f"{theirs.serial_number:x}"
    assert mine.not_before == theirs.not_valid_before_utc.timestamp() * 1000
    assert mine.not_after == theirs.not_valid_after_utc.timestamp() * 1000


@pytest.mark.parametrize("cut", [0, 1, 10, 27, 60, 100, 200, -200, -60, -30])
def test_a_damaged_certificate_is_an_error_in_words(cut: int) -> None:
    pem = make(datetime(2026, 1, 1, tzinfo=UTC), datetime(2027, 1, 1, tzinfo=UTC), serial=5)
    with pytest.raises(ValueError, match=r".+"):
        read_validity(pem[:cut])


def test_the_next_one_is_due_when_a_third_of_the_life_is_left() -> None:
    year = Validity("1", 0, 360 * DAY_MS)
    assert year.renew_at(0.0) == 240 * DAY_MS
    assert 228 * DAY_MS <= year.renew_at(0.999) < 240 * DAY_MS
    assert year.days_left(359 * DAY_MS) == 1
    assert year.days_left(361 * DAY_MS) == -1
