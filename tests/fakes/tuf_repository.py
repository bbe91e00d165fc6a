"""A real TUF repository in memory, made with python-tuf, and an in-memory server for it; plus every way to make it lie.

    repository = TufRepository()
    repository.add_target("director.json", director.public_document())
    repository.publish()
    TrustedMetadata(repository.enrol(state_dir), repository.fetch_part)

`files` is what a server would hold ("metadata/..." and "targets/..."); tests change it to see what a device does about it.
"""

import base64
import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from securesystemslib.signer import CryptoSigner, Signer
from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, TargetFile, Targets, Timestamp

from covey_agent.workers.errors import NetworkError
from covey_contract.codec import digest_of
from covey_contract.limits import METADATA_PART_BYTES
from covey_contract.messages import Command, Desired, MetadataPart, Signed


class Director:
    """The server's online key that signs orders."""

    def __init__(self) -> None:
        self._key = Ed25519PrivateKey.generate()
        self.public = self._key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)

    @property
    def keyid(self) -> str:
        """sha256 of the raw public key."""
        return digest_of(self.public)

    def public_document(self) -> bytes:
        """The content of the TUF target director.json."""
        return msgspec.json.encode({"keys": {self.keyid: base64.b64encode(self.public).decode()}})

    def sign(self, order: Desired | Command) -> Signed:
        """A signed envelope."""
        payload = msgspec.json.encode(order)
        return Signed(payload=payload, keyid=self.keyid, signature=self._key.sign(payload))


class TufRepository:
    """Publishes metadata with consistent snapshots, and serves itself in parts."""

    def __init__(self, *, expires: timedelta = timedelta(days=1)) -> None:
        self.files: dict[str, bytes] = {}
        self.asked: list[tuple[str, int]] = []
        self.holders: list[Signer] = []  # of root, besides the first
        self._signers: dict[str, Signer] = {role: CryptoSigner.generate_ed25519() for role in ("root", "timestamp", "snapshot", "targets")}
        expiry = (datetime.now(UTC) + expires).replace(microsecond=0)
        self.root = Root(expires=expiry, consistent_snapshot=True)
        self.timestamp = Timestamp(expires=expiry)
        self.snapshot = Snapshot(expires=expiry)
        self.targets = Targets(expires=expiry)
        for role, signer in self._signers.items():
            self.root.add_key(signer.public_key, role)
        self.timestamp.version = self.snapshot.version = self.targets.version = 0
        self.anchor = self._sign("root", self.root)
        self.files["metadata/1.root.json"] = self.anchor

    def add_target(self, path: str, data: bytes) -> None:
        """List a target; `publish` makes it known."""
        digest = hashlib.sha256(data).hexdigest()
        self.targets.targets[path] = TargetFile(len(data), {"sha256": digest}, path)
        folder, slash, name = path.rpartition("/")
        self.files[f"targets/{folder}{slash}{digest}.{name}"] = data

    def publish(self) -> None:
        """Sign the next version of targets, snapshot and timestamp."""
        self.targets.version += 1
        self.files[f"metadata/{self.targets.version}.targets.json"] = self._sign("targets", self.targets)
        self.snapshot.version += 1
        self.snapshot.meta["targets.json"] = MetaFile(self.targets.version)
        self.files[f"metadata/{self.snapshot.version}.snapshot.json"] = self._sign("snapshot", self.snapshot)
        self.publish_timestamp()

    def publish_timestamp(self) -> None:
        """Sign the next version of the timestamp alone."""
        self.timestamp.version += 1
        self.timestamp.snapshot_meta = MetaFile(self.snapshot.version)
        self.files["metadata/timestamp.json"] = self._sign("timestamp", self.timestamp)

    def rotate_timestamp_key(self) -> None:
        """A new root version, signed by the root key, names another timestamp key."""
        self.rotate_key("timestamp")

    def rotate_key(self, role: str) -> None:
        """A new root version names another key for a role; a new root key signs beside the one before."""
        before = self._signers[role]
        self.root.revoke_key(before.public_key.keyid, role)
        self._signers[role] = CryptoSigner.generate_ed25519()
        self.root.add_key(self._signers[role].public_key, role)
        self.publish_root([before] if role == "root" else [])

    def publish_root(self, also: Sequence[Signer] = (), *, without_own: bool = False) -> None:
        """The next version of root, signed by the present root keys, and by others."""
        self.root.version += 1
        metadata = Metadata(self.root)
        for signer in [*([] if without_own else [self._signers["root"], *self.holders]), *also]:
            metadata.sign(signer, append=True)
        self.files[f"metadata/{self.root.version}.root.json"] = metadata.to_bytes()

    def share_root(self, holders: int, threshold: int) -> None:
        """More people hold root, and several must sign."""
        self.holders = [CryptoSigner.generate_ed25519() for _ in range(holders - 1)]
        for signer in self.holders:
            self.root.add_key(signer.public_key, "root")
        self.root.roles["root"].threshold = threshold
        self.publish_root()

    def forge(self, role: str) -> None:
        """From now on a role is signed by a key that no root names."""
        self._signers[role] = CryptoSigner.generate_ed25519()

    def enrol(self, state_dir: Path) -> Path:
        """Write the trust anchor as enrolment does."""
        (state_dir / "tuf").mkdir(parents=True, exist_ok=True)
        (state_dir / "tuf" / "root.json").write_bytes(self.anchor)
        return state_dir

    def fetch_part(self, name: str, part: int) -> MetadataPart:
        """A PartSource."""
        self.asked.append((name, part))
        return self.answer("x", name, part)

    def answer(self, want_id: str, name: str, part: int) -> MetadataPart:
        """What a server answers to WantMetadata."""
        data = self.files.get(name)
        if data is None:
            return MetadataPart(id=want_id, part=part, parts=0)
        parts = max(-(-len(data) // METADATA_PART_BYTES), 1)
        start = part * METADATA_PART_BYTES
        return MetadataPart(id=want_id, part=part, parts=parts, data=data[start : start + METADATA_PART_BYTES])

    def _sign(self, role: str, content: Root | Timestamp | Snapshot | Targets) -> bytes:
        metadata: Metadata[Any] = Metadata(content)
        metadata.sign(self._signers[role])
        return metadata.to_bytes()


def unreachable(name: str, part: int) -> MetadataPart:
    """A PartSource without a network."""
    raise NetworkError(f"no answer for {name} part {part}")
