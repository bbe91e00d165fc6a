"""Where Mosquitto keeps what it needs, and the text of its rights."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from covey_contract.topics import PREFIX
from covey_server.devices.rules import SERVER_NAME
from covey_server.settings import Settings

ADMIN = "covey-admin"  # the user of the local listener; it may neither publish nor subscribe


@dataclass(frozen=True, slots=True)
class MosquittoFiles:
    """Mosquitto's folder in the work folder."""

    folder: Path

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """The folder of this server."""
        return cls(settings.path("broker"))

    @property
    def config(self) -> Path:
        """The broker's configuration."""
        return self.folder / "mosquitto.conf"

    @property
    def acl(self) -> Path:
        """Who may say what; read again on SIGHUP."""
        return self.folder / "rights.acl"

    @property
    def no_rights(self) -> Path:
        """The rights of the local listener: none."""
        return self.folder / "none.acl"

    @property
    def crl(self) -> Path:
        """The revocation list; read again on SIGHUP."""
        return self.folder / "crl.pem"

    @property
    def applied(self) -> Path:
        """What the broker was given last."""
        return self.folder / "rights.json"

    @property
    def pending(self) -> Path:
        """Exists while the broker may not have taken what was written."""
        return self.folder / "rights.pending"

    @property
    def lock(self) -> Path:
        """Held while rights are applied, because API and worker both do."""
        return self.folder / "rights.lock"

    @property
    def pid(self) -> Path:
        """Written by the broker."""
        return self.folder / "mosquitto.pid"

    @property
    def log(self) -> Path:
        """Written by the broker; names each client id with its certificate."""
        return self.folder / "mosquitto.log"

    @property
    def sessions(self) -> Path:
        """Client ids from logs that are gone."""
        return self.folder / "sessions.json"

    @property
    def socket(self) -> Path:
        """The local listener."""
        return self.folder / "admin.sock"

    @property
    def password(self) -> Path:
        """Of the local listener."""
        return self.folder / "admin.password"

    @property
    def password_file(self) -> Path:
        """The same, hashed, for the broker."""
        return self.folder / "admin.users"

    @property
    def store(self) -> Path:
        """Retained and queued messages."""
        return self.folder / "store"


def rights_file(gone: Iterable[str]) -> str:
    """Who may say what: patterns for whoever has a certificate in force, nothing for those that have none any more."""
    denied = [f"user {device}\ntopic deny {PREFIX}/#\n" for device in sorted(set(gone))]
    patterns = ("write {}/d/%u/up/#", "write {}/d/%u/status", "read {}/d/%u/down/#", "read {}/a/#")
    own = "".join(f"pattern {pattern.format(PREFIX)}\n" for pattern in patterns)
    return "\n".join([f"user {SERVER_NAME}\ntopic readwrite {PREFIX}/#\n", *denied, own])
