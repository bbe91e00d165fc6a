"""Identifiers and their patterns, checked wherever a string from outside becomes an id.

A device id is also the CN of a certificate, a level of an MQTT topic, a folder name and part of a URL. Only the strictest
common subset of these is allowed, so that no id ever needs to be escaped.
"""

import hashlib
import re
from typing import NewType

from covey_contract.errors import InvalidIdError

DeviceId = NewType("DeviceId", str)
Digest = NewType("Digest", str)  # lower-case hex sha256
Name = NewType("Name", str)  # of a model, task, dataset, phase, ...

DEVICE_ID_PATTERN = r"^[a-z0-9-]{1,64}$"
NAME_PATTERN = r"^[a-z0-9][a-z0-9_-]{0,63}$"
DIGEST_PATTERN = r"^[0-9a-f]{64}$"
AGENT_VERSION_PATTERN = r"^[0-9][0-9A-Za-z.]{0,39}$"  # part of a file name and of a TUF target

# fullmatch, because "$" in Python also matches before a trailing newline.
_DEVICE_ID = re.compile(r"[a-z0-9-]{1,64}")
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_DIGEST = re.compile(r"[0-9a-f]{64}")


def mqtt_client_id(name: str, key: bytes, role: str = "") -> str:
    """The MQTT client id of a connection: nobody else can know it, because it follows from the private key.

    A broker ends the live connection of a client id when another connection takes it. Not every broker ties client ids to
    certificates, so one that can be guessed would let any device throw out any other, and the server.
    """
    secret = hashlib.sha256(b"covey mqtt client id\0" + key).hexdigest()[:32]
    return ":".join(part for part in (name, role, secret) if part)


def agent_wheel(version: str) -> str:
    """The file name of the agent's wheel, which is the TUF target agents/<name>."""
    if re.fullmatch(AGENT_VERSION_PATTERN.strip("^$"), version) is None:
        raise InvalidIdError("agent version", version, AGENT_VERSION_PATTERN)
    return f"covey-{version}-py3-none-any.whl"


def is_device_id(value: str) -> bool:
    """Whether `value` is a valid device id."""
    return _DEVICE_ID.fullmatch(value) is not None


def parse_device_id(value: str) -> DeviceId:
    """Return `value` as a DeviceId, or raise InvalidIdError."""
    if not isinstance(value, str) or not is_device_id(value):
        raise InvalidIdError("device id", value, DEVICE_ID_PATTERN)
    return DeviceId(value)


def parse_name(value: str, kind: str = "name") -> Name:
    """Return `value` as the Name of a model, task or dataset, or raise InvalidIdError."""
    if not isinstance(value, str) or _NAME.fullmatch(value) is None:
        raise InvalidIdError(kind, value, NAME_PATTERN)
    return Name(value)


def parse_digest(value: str) -> Digest:
    """Return `value` as a sha256 in lower-case hex, or raise InvalidIdError."""
    if not isinstance(value, str) or _DIGEST.fullmatch(value) is None:
        raise InvalidIdError("digest", value, DIGEST_PATTERN)
    return Digest(value)
