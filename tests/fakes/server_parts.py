"""The server's parts for tests: a real database (SQLite in a temporary folder) and a real certificate authority; fakes for the rest.

parts = make_parts(tmp_path)
parts.clock.advance(hours=1)
device = enrol(parts, "cam-1")
http = api_client(parts)                      # an administrator; api_client(parts, role=Role.VIEWER)
router = Router(parts)
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from fastapi import APIRouter, FastAPI
from fastapi.testclient import TestClient
from sqlmodel import Session, select
from starlette.types import Receive, Scope, Send
from tests.fakes.pki import make_csr

from covey_contract.codec import digest_of
from covey_contract.ids import DeviceId
from covey_contract.messages import Signed
from covey_server import tables
from covey_server.access import api as access_api
from covey_server.access import service as access
from covey_server.access.models import Role
from covey_server.access.throttle import RateLimit
from covey_server.api_errors import install_error_handlers
from covey_server.audit import api as audit_api
from covey_server.db import Database
from covey_server.devices import api as devices_api
from covey_server.devices import edge as devices_edge
from covey_server.devices import service as devices
from covey_server.devices.authority import FileAuthority
from covey_server.devices.certificates import active_devices
from covey_server.devices.invitation_token import read_token
from covey_server.devices.models import Device, Invitation
from covey_server.errors import NotFoundError
from covey_server.outbox import LiveEvent, OutboxMessage
from covey_server.parts import BrokerRight, Parts
from covey_server.settings import Settings
from covey_server.telemetry import api as telemetry_api
from covey_server.triggers import api as triggers_api

START = datetime(2026, 1, 15, 12, 0, tzinfo=UTC)


@dataclass
class SteppedClock:
    """A clock that stands still until a test moves it."""

    now: datetime = START

    def __call__(self) -> datetime:
        """The present moment."""
        return self.now

    def advance(self, **by: float) -> datetime:
        """Move on, as advance(hours=1)."""
        self.now += timedelta(**by)
        return self.now


@dataclass
class RecordedPermissions:
    """Remembers the table that the broker would have, and every table before it."""

    tables: list[list[DeviceId]] = field(default_factory=list)
    error: Exception | None = None
    rights: list[BrokerRight] = field(default_factory=list)

    @property
    def allowed(self) -> list[DeviceId]:
        """Who may connect now."""
        return self.tables[-1] if self.tables else []

    def apply(self, rights: Iterable[BrokerRight]) -> None:
        """Take a new table, or fail as a broker would."""
        if self.error is not None:
            raise self.error
        self.rights = list(rights)
        self.tables.append(active_devices(self.rights))


@dataclass
class MemoryBlobs:
    """A blob store in memory; `path` writes a copy for whoever needs a file."""

    folder: Path
    blobs: dict[str, bytes] = field(default_factory=dict)

    def put(self, data: bytes) -> str:
        """Store bytes, return their digest."""
        digest = digest_of(data)
        self.blobs[digest] = data
        return digest

    def put_file(self, path: Path) -> tuple[str, int]:
        """Store a file, return its digest and length."""
        data = path.read_bytes()
        return self.put(data), len(data)

    def exists(self, digest: str) -> bool:
        """Whether the store holds it."""
        return digest in self.blobs

    def read(self, digest: str) -> bytes:
        """All of it."""
        if digest not in self.blobs:
            raise NotFoundError("blob", digest)
        return self.blobs[digest]

    def read_range(self, digest: str, offset: int, length: int) -> bytes:
        """Part of it."""
        return self.read(digest)[offset : offset + length]

    def delete(self, digest: str) -> None:
        """Forget it."""
        self.blobs.pop(digest, None)

    def path(self, digest: str) -> Path:
        """A file with the bytes."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / digest
        path.write_bytes(self.read(digest))
        return path


@dataclass
class MemoryRepository:
    """Targets without signatures: for what only adds and looks up."""

    targets: dict[str, bytes] = field(default_factory=dict)
    refreshed: list[datetime] = field(default_factory=list)

    def add_target(self, path: str, data: bytes) -> None:
        """Add or replace one target."""
        self.targets[path] = data

    def remove_target(self, path: str) -> None:
        """Take one target out."""
        self.targets.pop(path, None)

    def list_targets(self) -> dict[str, str]:
        """Every target's path and sha256."""
        return {path: digest_of(data) for path, data in self.targets.items()}

    def newest_root(self) -> bytes:
        """Stands for the root metadata."""
        return b'{"signed": {"_type": "root"}}'

    def read_file(self, name: str) -> bytes | None:
        """A file as a device asks for it."""
        return self.targets.get(name.removeprefix("targets/"))

    def refresh(self, now: datetime) -> None:
        """Remember that it was asked."""
        self.refreshed.append(now)


class KeyDirector:
    """A real Ed25519 key in memory."""

    def __init__(self) -> None:
        self._key = Ed25519PrivateKey.generate()
        self.public = self._key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        self.keyid = digest_of(self.public)

    def sign(self, payload: bytes) -> Signed:
        """Sign exact bytes."""
        return Signed(payload=payload, keyid=self.keyid, signature=self._key.sign(payload))


@dataclass(frozen=True, slots=True)
class TestParts(Parts):
    """Parts whose clock and permissions a test can reach by their own type."""

    __test__ = False
    clock: SteppedClock
    permissions: RecordedPermissions
    blobs: MemoryBlobs
    repository: MemoryRepository
    director: KeyDirector


def make_parts(work_dir: Path, *, settings: Settings | None = None) -> TestParts:
    """Parts on a fresh work folder; the tables exist, nothing is in them."""
    settings = settings or Settings(work_dir=work_dir)
    clock = SteppedClock()
    work_dir.mkdir(parents=True, exist_ok=True)
    settings.path("fleet.db").write_bytes(_empty_database())
    db = share_compiled_statements(Database(settings.resolved_database_url))
    return TestParts(
        settings=settings,
        db=db,
        clock=clock,
        authority=_copied_authority(settings),
        permissions=RecordedPermissions(),
        blobs=MemoryBlobs(work_dir / "blob-files"),
        repository=MemoryRepository(),
        director=KeyDirector(),
    )


_COMPILED: dict[Any, Any] = {}


def share_compiled_statements(db: Database) -> Database:
    """The same database, on statements that an earlier test has compiled: hundreds of tests make one each."""
    db.engine = db.engine.execution_options(compiled_cache=_COMPILED)
    return db


def _copied_authority(settings: Settings) -> FileAuthority:
    """A real authority whose files were made once and are copied."""
    folder = settings.path("pki")
    folder.mkdir()
    for name, data in _authority_files().items():
        (folder / name).write_bytes(data)
    return FileAuthority.open(settings)


@cache
def _authority_files() -> dict[str, bytes]:
    with TemporaryDirectory() as work_dir:
        settings = Settings(work_dir=Path(work_dir))
        FileAuthority.create(settings, now=START)
        return {name: settings.path("pki", name).read_bytes() for name in ("ca.key", "ca.crt")}


@cache
def _empty_database() -> bytes:
    """A database file with all tables; made once, because making them takes longer than most tests."""
    with TemporaryDirectory() as folder:
        db = Database(f"sqlite:///{folder}/empty.db")
        tables.metadata.create_all(db.engine)
        db.close()  # the last connection folds the write-ahead log into the file
        return Path(folder, "empty.db").read_bytes()


def invite(
    parts: Parts, device: str, *, profile: str = "device", labels: Mapping[str, str] | None = None, ttl: timedelta = timedelta(hours=1)
) -> tuple[Invitation, str]:
    """An invitation and the text of its token."""
    with parts.db.begin() as session:
        return devices.invite_device(
            session,
            device,
            profile=profile,
            labels=labels or {},
            ttl=ttl,
            actor="user:test",
            now=parts.clock(),
            edge_url=parts.settings.edge_url,
            fingerprint=parts.authority.fingerprint(),
        )


def enrol(
    parts: Parts, device: str, *, profile: str = "device", labels: Mapping[str, str] | None = None, supernode_key: str = ""
) -> Device:
    """A device that has enrolled with a real certificate request."""
    from covey_server.devices.invitation_token import PREFIX

    _, text = invite(parts, device, profile=profile, labels=labels)
    assert text.startswith(PREFIX)
    with parts.db.begin() as session:
        enrolled = devices.enrol_device(
            session,
            token=read_token(text)["t"],
            device=device,
            csr=make_csr(device),
            supernode_public_key=supernode_key,
            profile=profile,
            agent_version="0.1.0",
            authority=parts.authority,
            now=parts.clock(),
        )
    return enrolled.device


def add_device(session: Session, device: str, **columns: object) -> Device:
    """A device's row without an enrolment, for tests that need many or none of its history."""
    row = Device(id=device)
    for name, value in columns.items():
        setattr(row, name, value)
    session.add(row)
    session.flush()
    return row


def make_app(parts: Parts, *more: APIRouter) -> FastAPI:
    """The device side's API and edge in one application; `more` adds other capabilities' routers."""
    app = _routes(*more)
    app.state.parts = parts
    return app


def _routes(*more: APIRouter) -> FastAPI:
    app = FastAPI()
    install_error_handlers(app)
    for edge in (devices_api, access_api, telemetry_api, triggers_api, audit_api, devices_edge):
        app.include_router(edge.router)
    for router in more:
        app.include_router(router)
    return app


_applications: dict[tuple[int, ...], tuple[FastAPI, tuple[APIRouter, ...]]] = {}


def _shared_routes(*more: APIRouter) -> FastAPI:
    """One application for each set of routers: its first request takes longer than most tests."""
    key = tuple(id(router) for router in more)
    if key not in _applications:
        _applications[key] = (_routes(*more), more)  # the routers are kept, so that no other gets the id of one
    return _applications[key][0]


class _AppOf:
    """The shared application, with one test's parts in it while it answers."""

    def __init__(self, parts: Parts, app: FastAPI) -> None:
        self._parts = parts
        self._app = app
        self._enrol_limit = RateLimit(burst=60, per_second=10)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        self._app.state.parts, self._app.state.enrol_limit = self._parts, self._enrol_limit
        await self._app(scope, receive, send)


def api_client(parts: Parts, *more: APIRouter, role: Role | None = Role.ADMIN) -> TestClient:
    """A client of the API with a token of this role, or without any."""
    client = TestClient(_AppOf(parts, _shared_routes(*more)), raise_server_exceptions=True)
    if role is not None:
        with parts.db.begin() as session:
            _, text = access.create_token(session, f"test-{role.value}", role=role, actor="system", now=parts.clock())
        client.headers["Authorization"] = f"Bearer {text}"
    return client


def sent_messages(parts: Parts, topic: str | None = None) -> list[OutboxMessage]:
    """What waits in the outbox, in order."""
    with parts.db.read() as session:
        rows = session.exec(select(OutboxMessage)).all()
    return [row for row in rows if topic is None or row.topic == topic]


def live_events(parts: Parts, name: str | None = None) -> list[LiveEvent]:
    """What consoles were told, in order."""
    with parts.db.read() as session:
        rows = session.exec(select(LiveEvent)).all()
    return [row for row in rows if name is None or row.name == name]
