"""The TUF repository in a folder, and the one way to change it.

    tuf/metadata/{1.root,7.targets,9.snapshot}.json  timestamp.json     tuf/targets/releases/digits/<sha256>.3.json

Rules:
- A change writes the target's content, then targets, snapshot and, last, timestamp. Only timestamp.json has a name that is
  used again, and it is replaced by one rename: a process that dies anywhere leaves the old repository, whole. What it left
  behind has a number that no snapshot names, and the next change overwrites it.
- The API and the worker both change it: a lock on tuf/.lock lets one at a time, in whatever process.
- Versions only increase, because a device refuses to go back. A repository that was restored from an old backup has gone back; it
  catches up by `raise_versions`.
- Root is signed by offline keys only; nothing here needs them but `create`. A new root comes whole and signed (`publish_root`), and may
  name another key for an online role: the key that was made for it is moved into place, and everything is signed anew. Broken off in
  between, the next `refresh` finishes it.
"""

import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any, Self, TypeVar

from securesystemslib.signer import CryptoSigner
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, TargetFile, Targets, Timestamp

from covey_contract.limits import MAX_METADATA_BYTES
from covey_server.clock import Clock, utc_now
from covey_server.errors import ConflictError, NotFoundError, TooLargeError, UnavailableError
from covey_server.releases.files import write_atomic
from covey_server.releases.keys import ONLINE_ROLES, make_key, offline_key_path, online_key_path, read_passphrase
from covey_server.releases.names import check_target_path, is_stored_name
from covey_server.releases.root import SERIALIZER, check_publishable, is_signed_for, parse_root, put_signature
from covey_server.releases.signers import load_signer, next_key, put_in_place
from covey_server.settings import Settings

_RoleT = TypeVar("_RoleT", Targets, Snapshot, Timestamp)
# A device that read timestamp a moment ago still needs the snapshot and targets that it named.
_KEEP_VERSIONS = 50


class TufRepository:
    """`parts.Repository` in the work folder's `tuf/`."""

    def __init__(self, settings: Settings, *, clock: Clock = utc_now) -> None:
        self._settings = settings
        self._clock = clock
        self._folder = settings.path("tuf")
        self._metadata = self._folder / "metadata"

    @classmethod
    def create(cls, settings: Settings, now: datetime, *, clock: Clock = utc_now) -> Self:
        """Make keys and the first metadata. Raises ConflictError if there is a repository already."""
        repository = cls(settings, clock=clock)
        with repository._locked():
            if (repository._metadata / "timestamp.json").exists():
                raise ConflictError(f"there is a TUF repository in {repository._folder} already")
            passphrase = read_passphrase(settings)
            root_signer = CryptoSigner(make_key(offline_key_path(settings), passphrase))
            root = Root(expires=_after(now, days=settings.tuf.root_days), consistent_snapshot=True)
            root.add_key(root_signer.public_key, Root.type)
            for role in ONLINE_ROLES:
                root.add_key(CryptoSigner(make_key(online_key_path(settings, role), passphrase)).public_key, role)
            root_md = Metadata(root)
            root_md.sign(root_signer)
            repository._write("1.root.json", root_md.to_bytes(SERIALIZER))
            repository._publish(_Roles.first(settings, now), now, change_targets=True)
        return repository

    def add_target(self, path: str, data: bytes) -> None:
        """Add or replace one target and publish new metadata; the same bytes again change nothing."""
        check_target_path(path)
        target = TargetFile.from_data(path, data)
        with self._locked():
            roles = self._load()
            if roles.targets.targets.get(path) == target:
                return
            write_atomic(self._folder / "targets" / target.get_prefixed_paths()[0], data)
            roles.targets.targets[path] = target
            self._publish(roles, self._clock(), change_targets=True)

    def remove_target(self, path: str) -> None:
        """Take one target out and publish new metadata. Raises NotFoundError."""
        with self._locked():
            roles = self._load()
            if roles.targets.targets.pop(path, None) is None:
                raise NotFoundError("target", path)
            self._publish(roles, self._clock(), change_targets=True)

    def list_targets(self) -> dict[str, str]:
        """Every target's path and sha256."""
        return {path: target.hashes["sha256"] for path, target in self._load().targets.targets.items()}

    def newest_root(self) -> bytes:
        """The newest root metadata file, which enrolment hands to a device."""
        return (self._metadata / f"{self._newest_root_version()}.root.json").read_bytes()

    def read_file(self, name: str) -> bytes | None:
        """A file as a device asks for it, `metadata/...` or `targets/...`; None if there is none."""
        if not is_stored_name(name):
            return None
        try:
            return (self._folder / name).read_bytes()
        except FileNotFoundError:
            return None

    def refresh(self, now: datetime) -> None:
        """Renew what has lived for more than half of its time, and finish a change of keys that was broken off."""
        roles = self._load()
        if not any(self._due(roles, now)) and self._is_signed_by_present_keys(roles):
            return
        with self._locked():
            self._put_keys_in_place()
            roles = self._load()  # again: another process may have renewed it while this one waited
            targets_due, others_due = self._due(roles, now)
            changed = not self._is_signed_by_present_keys(roles)
            if targets_due or others_due or changed:
                self._publish(roles, now, change_targets=targets_due or changed)

    def expiries(self) -> dict[str, datetime]:
        """When each role's newest metadata expires."""
        roles = self._load()
        root = Metadata[Root].from_bytes(self.newest_root()).signed
        return {"root": root.expires} | {role.type: role.expires for role in (roles.targets, roles.snapshot, roles.timestamp)}

    def publish_root(self, data: bytes, now: datetime, *, after: Sequence[bytes] = ()) -> int:
        """Make a signed root the one that devices follow; its version. Raises ConflictError, saying what it lacks.

        `after`: roots that were published before this one and are not here, as after a restored backup. Devices need each of them on
        their way, but only of the last one this server must have the keys.
        """
        with self._locked():
            newest = self.newest_root()
            on_the_way = []
            for earlier in after:
                version = parse_root(earlier).signed.version
                if self.read_file(f"metadata/{version}.root.json") == earlier:
                    continue  # a first attempt was cut off after it
                check_publishable(earlier, newest, now=None)
                on_the_way.append((version, earlier))
                newest = earlier
            root = check_publishable(data, newest, now=now)
            for role in ONLINE_ROLES:
                self._check_can_sign(root, role)
            for version, earlier in on_the_way:
                self._write(f"{version}.root.json", earlier)
            self._write(f"{root.version}.root.json", data)
            self._put_keys_in_place()
            roles = self._load()
            if not self._is_signed_by_present_keys(roles):
                self._publish(roles, now, change_targets=True)
            return root.version

    def raise_versions(self, by: int, now: datetime) -> dict[str, int]:
        """Go on `by` versions later, which is more than devices can have seen of what was lost with a backup; the new versions."""
        with self._locked():
            roles = self._load()
            for role in (roles.targets, roles.snapshot, roles.timestamp):
                role.version += by
            self._publish(roles, now, change_targets=True)
            return {role.type: role.version for role in (roles.targets, roles.snapshot, roles.timestamp)}

    def _check_can_sign(self, root: Root, role: str) -> None:
        keyids, threshold = root.roles[role].keyids, root.roles[role].threshold
        waiting = next_key(self._settings, role)
        mine = {load_signer(self._settings, role).public_key.keyid} | ({waiting.keyid} if waiting else set())
        if threshold != 1 or not mine & set(keyids):
            raise ConflictError(f"this root names other keys for {role} than this server has: nothing could be signed any more")

    def _put_keys_in_place(self) -> None:
        """Next keys that the newest root names become the ones that count."""
        root = parse_root(self.newest_root()).signed
        for role in ONLINE_ROLES:
            waiting = next_key(self._settings, role)
            if waiting is not None and waiting.keyid in root.roles[role].keyids:
                put_in_place(self._settings, role)

    def _is_signed_by_present_keys(self, roles: "_Roles") -> bool:
        root = parse_root(self.newest_root()).signed
        files = {"timestamp": "timestamp.json", "snapshot": f"{roles.snapshot.version}.snapshot.json"}
        files["targets"] = f"{roles.targets.version}.targets.json"
        for role, name in files.items():
            metadata: Metadata[Any] = Metadata.from_bytes((self._metadata / name).read_bytes())
            if not is_signed_for(root, role, metadata.signed_bytes, metadata.signatures):
                return False
        return True

    def _due(self, roles: "_Roles", now: datetime) -> tuple[bool, bool]:
        """Whether targets, and whether snapshot or timestamp, are past half of their time."""
        tuf = self._settings.tuf
        targets = roles.targets.expires - now < timedelta(days=tuf.targets_days) / 2
        snapshot = roles.snapshot.expires - now < timedelta(days=tuf.snapshot_days) / 2
        timestamp = roles.timestamp.expires - now < timedelta(hours=tuf.timestamp_hours) / 2
        return targets, snapshot or timestamp

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self._folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._folder / ".lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)  # gives the lock back, as the death of the process does

    def _load(self) -> "_Roles":
        """The present roles, by following timestamp as a device does; not by the highest number on disk, which may be a leftover."""
        try:
            timestamp = Metadata[Timestamp].from_bytes((self._metadata / "timestamp.json").read_bytes()).signed
            snapshot_file = self._metadata / f"{timestamp.snapshot_meta.version}.snapshot.json"
            snapshot = Metadata[Snapshot].from_bytes(snapshot_file.read_bytes()).signed
            targets_file = self._metadata / f"{snapshot.meta['targets.json'].version}.targets.json"
            targets = Metadata[Targets].from_bytes(targets_file.read_bytes()).signed
        except FileNotFoundError as exc:
            raise UnavailableError(f"there is no TUF repository in {self._folder} ({exc}); `covey init` makes one") from exc
        except RepositoryError as exc:
            raise UnavailableError(f"the TUF repository in {self._folder} cannot be read: {exc}") from exc
        return _Roles(targets, snapshot, timestamp)

    def _publish(self, roles: "_Roles", now: datetime, *, change_targets: bool) -> None:
        tuf = self._settings.tuf
        if change_targets:
            roles.targets.version += 1
            roles.targets.expires = _after(now, days=tuf.targets_days)
            data = self._signed(roles.targets, f"{roles.targets.version}.targets.json")
            roles.snapshot.meta["targets.json"] = MetaFile.from_data(roles.targets.version, data, ["sha256"])
        roles.snapshot.version += 1
        roles.snapshot.expires = _after(now, days=tuf.snapshot_days)
        data = self._signed(roles.snapshot, f"{roles.snapshot.version}.snapshot.json")
        roles.timestamp.snapshot_meta = MetaFile.from_data(roles.snapshot.version, data, ["sha256"])
        roles.timestamp.version += 1
        roles.timestamp.expires = _after(now, hours=tuf.timestamp_hours)
        self._signed(roles.timestamp, "timestamp.json")
        self._prune(roles)

    def _signed(self, role: _RoleT, name: str) -> bytes:
        metadata = Metadata(role)
        put_signature(metadata, load_signer(self._settings, role.type))
        data = metadata.to_bytes(SERIALIZER)
        if len(data) > MAX_METADATA_BYTES:
            raise TooLargeError(f"{name} would have {len(data)} bytes, devices take at most {MAX_METADATA_BYTES}; withdraw old releases")
        self._write(name, data)
        return data

    def _write(self, name: str, data: bytes) -> None:
        write_atomic(self._metadata / name, data)

    def _prune(self, roles: "_Roles") -> None:
        for role in (roles.targets, roles.snapshot):
            for file in self._metadata.glob(f"*.{role.type}.json"):
                if int(file.name.split(".")[0]) <= role.version - _KEEP_VERSIONS:
                    file.unlink(missing_ok=True)

    def _newest_root_version(self) -> int:
        versions = [int(file.name.split(".")[0]) for file in self._metadata.glob("*.root.json") if file.name[0] != "."]
        if not versions:
            raise UnavailableError(f"there is no TUF repository in {self._folder}; `covey init` makes one")
        return max(versions)


class _Roles:
    """The three roles that a change touches."""

    __slots__ = ("snapshot", "targets", "timestamp")

    def __init__(self, targets: Targets, snapshot: Snapshot, timestamp: Timestamp) -> None:
        self.targets = targets
        self.snapshot = snapshot
        self.timestamp = timestamp

    @classmethod
    def first(cls, settings: Settings, now: datetime) -> Self:
        """Roles that become version 1 when they are published."""
        roles = cls(
            Targets(expires=_after(now, days=settings.tuf.targets_days)),
            Snapshot(expires=_after(now, days=settings.tuf.snapshot_days)),
            Timestamp(expires=_after(now, hours=settings.tuf.timestamp_hours)),
        )
        for role in (roles.targets, roles.snapshot, roles.timestamp):
            role.version = 0
        return roles


def _after(now: datetime, *, days: float = 0.0, hours: float = 0.0) -> datetime:
    """An expiry; TUF knows whole seconds only."""
    return (now + timedelta(days=days, hours=hours)).replace(microsecond=0)
