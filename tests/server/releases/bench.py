"""A server's parts on a temporary folder: a real database, real blobs and a real director; the TUF repository in memory."""

import atexit
import functools
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlmodel import Session

from covey_contract.codec import digest_of
from covey_contract.ids import DeviceId
from covey_contract.messages import Capabilities, DeploymentReport, Profile, Reported
from covey_contract.release import Golden, Quality, Runtime, TensorSpec, pack_floats
from covey_server import tables
from covey_server.db import Database
from covey_server.devices.models import Device
from covey_server.errors import NotFoundError
from covey_server.parts import BrokerRight, IssuedCertificate, Parts
from covey_server.releases.director import FileDirector
from covey_server.releases.requests import ImportedVariant, ImportSpec
from covey_server.releases.store import FolderBlobStore
from covey_server.settings import Settings

START = datetime(2026, 11, 23, 9, 0, tzinfo=UTC)
TENSOR = TensorSpec(name="x", dtype="float32", shape=[-1, 2])
GOLDEN = Golden(input_shape=[1, 2], output_shape=[1, 2], inputs=pack_floats(b"\0" * 8), outputs=pack_floats(b"\0" * 8))
QUALITY = Quality(accuracy=0.9, accuracy_drop=0.0, relative_error=0.01, latency_ms=0.1, samples=100)


class MemoryRepository:
    """`parts.Repository` without signatures; `fails` makes the next change raise it."""

    def list_targets(self) -> dict[str, str]:
        """Every target's path and sha256."""
        return {path: digest_of(data) for path, data in self.targets.items()}

    def __init__(self) -> None:
        self.targets: dict[str, bytes] = {}
        self.files: dict[str, bytes] = {}
        self.fails: Exception | None = None

    def add_target(self, path: str, data: bytes) -> None:
        if self.fails:
            raise self.fails
        self.targets[path] = data

    def remove_target(self, path: str) -> None:
        if path not in self.targets:
            raise NotFoundError("target", path)
        del self.targets[path]

    def newest_root(self) -> bytes:
        return b"root"

    def read_file(self, name: str) -> bytes | None:
        return self.files.get(name)

    def refresh(self, now: datetime) -> None:
        del now


class NoAuthority:
    """Nothing here needs certificates."""

    def ca_pem(self) -> str:
        return ""

    def fingerprint(self) -> str:
        return ""

    def sign_request(self, csr_pem: str, *, device: DeviceId, now: datetime) -> IssuedCertificate:
        raise NotImplementedError(csr_pem, device, now)

    def key_digest(self, csr_pem: str, *, device: DeviceId) -> str:
        raise NotImplementedError(csr_pem, device)


class NoPermissions:
    """Nothing here needs a broker."""

    def apply(self, rights: Iterable[BrokerRight]) -> None:
        del rights


@dataclass
class HandClock:
    """A clock that tests move."""

    now: datetime = START

    def __call__(self) -> datetime:
        return self.now

    def advance(self, seconds: float) -> datetime:
        self.now += timedelta(seconds=seconds)
        return self.now


@dataclass
class Bench:
    """Parts, and short ways to what tests need again and again."""

    parts: Parts
    clock: HandClock
    repository: MemoryRepository
    generations: dict[str, int] = field(default_factory=dict)

    def add_devices(self, *ids: str, profile: str = "device", labels: dict[str, str] | None = None) -> None:
        with self.parts.db.begin() as session:
            for device in ids:
                session.add(Device(id=device, profile=profile, labels=labels or {}, enrolled_at=START))

    def device_reports(
        self, session: Session, device: str, deployment: DeploymentReport | None, *, desired_generation: int = 0
    ) -> Reported:
        """A device's report, written into its row as the devices capability does."""
        self.generations[device] = self.generations.get(device, 0) + 1
        reported = Reported(
            generation=self.generations[device],
            agent_version="1",
            profile=Profile.DEVICE,
            at=0,
            desired_generation=desired_generation,
            deployment=deployment,
            capabilities=Capabilities(),
        )
        row = session.get_one(Device, device)
        row.reported = msgspec.to_builtins(reported)
        return reported


def make_bench(folder: Path) -> Bench:
    settings = Settings(work_dir=folder)
    clock = HandClock()
    repository = MemoryRepository()
    parts = Parts(
        settings=settings,
        db=_fresh_database(),
        clock=clock,
        authority=NoAuthority(),
        permissions=NoPermissions(),
        blobs=FolderBlobStore(folder / "blobs"),
        repository=repository,
        director=FileDirector(Ed25519PrivateKey.generate()),
    )
    return Bench(parts, clock, repository)


def import_spec(model: str = "digits", *, variants: tuple[tuple[str, Quality | None], ...] = (("onnx-int8", QUALITY),)) -> ImportSpec:
    return ImportSpec(
        model=model,
        golden=GOLDEN,
        labels=["a", "b"],
        variants=[
            ImportedVariant(
                name=name,
                precision="int8",
                runtime=Runtime.ONNXRUNTIME,
                min_runtime_version="1.20",
                file=f"{name}.onnx",
                input=TENSOR,
                output=TENSOR,
                golden_tolerance=0.05,
                quality=quality,
            )
            for name, quality in variants
        ],
    )


def _fresh_database() -> Database:
    """An empty database behind an engine that all tests of this process share.

    An engine compiles every statement anew, which costs several times what a test does; so the file is changed, not the engine.
    """
    db, empty, file = _shared_database()
    db.close()
    for leftover in (file.with_name(f"{file.name}-wal"), file.with_name(f"{file.name}-shm")):
        leftover.unlink(missing_ok=True)
    shutil.copy(empty, file)
    return db


@functools.cache
def _shared_database() -> tuple[Database, Path, Path]:
    folder = Path(tempfile.mkdtemp(prefix="covey-test-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    maker = Database(f"sqlite:///{folder / 'empty.db'}")
    tables.metadata.create_all(maker.engine)
    with maker.engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
    maker.close()
    return Database(f"sqlite:///{folder / 'fleet.db'}"), folder / "empty.db", folder / "fleet.db"
