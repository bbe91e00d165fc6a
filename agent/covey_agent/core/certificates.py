"""What the idle agent must know of its certificate: its number and from when until when it is valid. Pure, and without cryptography.

A certificate is a tree of (tag, length, value). Only the way to three leaves is walked; whether the certificate is genuine was checked
by the child that installed it.

    Certificate ::= SEQUENCE { SEQUENCE { [0] version, INTEGER serial, algorithm, issuer, SEQUENCE { Time, Time }, ... }, ... }
"""

import base64
from dataclasses import dataclass
from datetime import UTC, datetime

_SEQUENCE, _INTEGER, _VERSION, _UTC_TIME, _GENERALIZED_TIME = 0x30, 0x02, 0xA0, 0x17, 0x18
_BEGIN, _END = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"
RENEW_SHARE = 3  # renew when one third of the life is left,
JITTER_SHARE = 30  # or up to a thirtieth of it earlier, so that a fleet that enrolled in one day does not renew in one hour
DAY_MS = 86_400_000


@dataclass(frozen=True, slots=True)
class Validity:
    """Of one certificate; milliseconds since 1970 UTC."""

    serial: str  # lower-case hex
    not_before: int
    not_after: int

    def renew_at(self, chance: float) -> int:
        """When to ask for the next one; `chance` in [0, 1)."""
        life = self.not_after - self.not_before
        return self.not_after - life // RENEW_SHARE - int(life // JITTER_SHARE * chance)

    def days_left(self, now: int) -> float:
        """Until it expires; negative afterwards."""
        return (self.not_after - now) / DAY_MS


def read_validity(pem: str) -> Validity:
    """Of the first certificate in a PEM text. Raises ValueError for anything that is not one."""
    begin, end = pem.find(_BEGIN), pem.find(_END)
    if begin < 0 or end < begin:
        raise ValueError("expected a PEM certificate")
    der = base64.b64decode("".join(pem[begin + len(_BEGIN) : end].split()), validate=True)
    body = _value(_value(der, _SEQUENCE)[0], _SEQUENCE)[0]
    if body[:1] == bytes([_VERSION]):
        body = _value(body, _VERSION)[1]
    serial, body = _value(body, _INTEGER)
    for _ in ("algorithm", "issuer"):
        body = _value(body, _SEQUENCE)[1]
    times = _value(body, _SEQUENCE)[0]
    first, times = _time(times)
    last, _rest = _time(times)
    return Validity(serial=f"{int.from_bytes(serial, 'big'):x}", not_before=first, not_after=last)


def _value(data: bytes, tag: int) -> tuple[bytes, bytes]:
    """The content of the first element, which must have this tag, and what follows it."""
    if len(data) < 2 or data[0] != tag:
        raise ValueError(f"expected tag {tag:#x} in the certificate, got {data[:1].hex() or 'nothing'}")
    length, start = data[1], 2
    if length & 0x80:
        start += length & 0x7F
        length = int.from_bytes(data[2:start], "big")
    if start + length > len(data):
        raise ValueError("the certificate is truncated")
    return data[start : start + length], data[start + length :]


def _time(data: bytes) -> tuple[int, bytes]:
    tag = data[0] if data[:1] in (bytes([_UTC_TIME]), bytes([_GENERALIZED_TIME])) else _UTC_TIME
    text, rest = _value(data, tag)
    digits = text.decode("ascii")
    if tag == _UTC_TIME:  # two digits of the year: 1950 to 2049
        digits = ("20" if int(digits[:2]) < 50 else "19") + digits
    if len(digits) != 15 or not digits.endswith("Z") or not digits[:-1].isdecimal():
        raise ValueError(f"expected a time as YYYYMMDDHHMMSSZ in the certificate, got {digits!r:.40}")
    # By hand: `strptime` would load the machine's locales into the idle process.
    month, day, hour, minute, second = (int(digits[at : at + 2]) for at in range(4, 14, 2))
    return int(datetime(int(digits[:4]), month, day, hour, minute, second, tzinfo=UTC).timestamp() * 1000), rest
