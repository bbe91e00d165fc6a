"""What the server is made of, as the thin edges (API, MQTT handlers, ticks) see it.

`app.py` builds one `Parts` per process and hands it to every edge; services never see it, they take the values they need.
Each part is a small Protocol, so that tests put fakes in its place.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol

from covey_contract.ids import DeviceId
from covey_contract.messages import Signed
from covey_server.clock import Clock
from covey_server.db import Database
from covey_server.settings import Settings


@dataclass(frozen=True, slots=True)
class IssuedCertificate:
    """A certificate fresh from the authority."""

    pem: str
    serial: str  # hex
    user: str  # its DNS name, by which a broker with a table of users knows it
    key_digest: str  # sha256 of its public key
    issued_at: datetime
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class BrokerRight:
    """One certificate as the broker must know it."""

    device: DeviceId
    user: str  # its DNS name
    serial: str  # hex; empty: a device from before serials were kept
    expires_at: datetime
    revoked_at: datetime | None = None  # retired or revoked: it opens no connection any more


class Authority(Protocol):
    """The fleet's own certificate authority."""

    def ca_pem(self) -> str:
        """The CA certificate."""
        ...

    def fingerprint(self) -> str:
        """sha256 of the CA certificate's DER, lower-case hex."""
        ...

    def sign_request(self, csr_pem: str, *, device: DeviceId, now: datetime) -> IssuedCertificate:
        """Issue a client certificate. Raises InvalidInputError for a bad CSR or one for another name."""
        ...

    def key_digest(self, csr_pem: str, *, device: DeviceId) -> str:
        """sha256 of the public key in a request that is valid for this device. Raises InvalidInputError."""
        ...


class Permissions(Protocol):
    """The broker's table of who may say what."""

    def apply(self, rights: Iterable[BrokerRight]) -> None:
        """Let exactly the certificates that are not revoked connect; whoever loses the last right loses its live session at once."""
        ...


class BlobStore(Protocol):
    """Files by their sha256."""

    def put(self, data: bytes) -> str:
        """Store bytes, return their digest."""
        ...

    def put_file(self, path: Path) -> tuple[str, int]:
        """Store a file, return its digest and length."""
        ...

    def exists(self, digest: str) -> bool:
        """Whether the store holds it."""
        ...

    def read(self, digest: str) -> bytes:
        """All of it. Raises NotFoundError."""
        ...

    def read_range(self, digest: str, offset: int, length: int) -> bytes:
        """Part of it; shorter at the end. Raises NotFoundError."""
        ...

    def delete(self, digest: str) -> None:
        """Forget it; one that is not there is no error."""
        ...

    def path(self, digest: str) -> Path:
        """A local path that holds it, for reading only. Raises NotFoundError."""
        ...


class Repository(Protocol):
    """The TUF repository that devices trust."""

    def add_target(self, path: str, data: bytes) -> None:
        """Add or replace one target and publish new metadata."""
        ...

    def remove_target(self, path: str) -> None:
        """Take one target out and publish new metadata."""
        ...

    def list_targets(self) -> dict[str, str]:
        """Every target's path and sha256."""
        ...

    def newest_root(self) -> bytes:
        """The newest root metadata file, which enrolment hands to a device."""
        ...

    def read_file(self, name: str) -> bytes | None:
        """A file as a device asks for it, `metadata/...` or `targets/...`; None if there is none."""
        ...

    def refresh(self, now: datetime) -> None:
        """Renew timestamp and snapshot before they expire."""
        ...


class Director(Protocol):
    """The online key that signs orders to devices."""

    keyid: str

    def sign(self, payload: bytes) -> Signed:
        """Sign exact bytes."""
        ...


@dataclass(frozen=True, slots=True)
class Parts:
    """Everything an edge of the server may use."""

    settings: Settings
    db: Database
    clock: Clock
    authority: Authority
    permissions: Permissions
    blobs: BlobStore
    repository: Repository
    director: Director
