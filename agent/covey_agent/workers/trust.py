"""What this device believes, and why: orders, manifests and task code, verified through TUF.

    with BulkLink(job.broker) as link:
        trusted = TrustedMetadata(Path(job.state_dir), link.fetch_part)
        trusted.refresh()
        order = trusted.verify_order(signed, device=device, now=now)
        manifest = trusted.fetch_manifest(order.release)

Rules:
- The anchor is `tuf/root.json`, written once at enrolment and never touched here; whatever the cache under `tuf/cache` says is
  believed only if a chain of roots leads to it from the anchor. So a lost or garbled cache costs a download, not the trust.
- TUF's own rules (python-tuf): signatures by threshold, no older version than one seen, nothing expired, no mix of states.
- An order (`Desired` or a `Command`) is signed by the online key that the TUF target `director.json` names. It may only name
  targets that TUF lists. So a broker can delay an order but not forge one.
- Verify before parsing; exact bytes are signed.
- UntrustedError is final, NetworkError may be tried again (`errors.py`). Nothing of TUF or cryptography leaves this module.
"""

import base64
import binascii
import fcntl
import hmac
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from urllib.parse import unquote

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from tuf.api.exceptions import DownloadError, DownloadHTTPError, DownloadLengthMismatchError, RepositoryError
from tuf.ngclient.config import UpdaterConfig
from tuf.ngclient.fetcher import FetcherInterface
from tuf.ngclient.updater import Updater

from covey_agent.workers.errors import NetworkError, StorageError, UntrustedError
from covey_agent.workers.link import PartSource
from covey_contract import limits
from covey_contract.codec import decode_order, digest_of
from covey_contract.errors import ContractError
from covey_contract.ids import agent_wheel
from covey_contract.messages import Command, Desired, ReleaseRef, Signed
from covey_contract.release import manifest_target

logger = logging.getLogger(__name__)
DIRECTOR_TARGET = "director.json"
MAX_ROOT_ROTATIONS = 1000  # counted from the anchor, which never changes: python-tuf's own 256 would be a device's last
_CACHED_TARGETS = 8  # files kept, so that a deployment that is tried again does not fetch its manifest again
_MAX_PARTS = limits.MAX_METADATA_BYTES // limits.METADATA_PART_BYTES + 1


class TrustedMetadata:
    """TUF's client over any PartSource. One instance does one refresh; make another one to look again."""

    def __init__(self, state_dir: Path, fetch: PartSource) -> None:
        """Load the anchor and the cache. Raises UntrustedError if the anchor is not a root that vouches for itself."""
        self._cache = state_dir / "tuf" / "cache"
        self._targets = state_dir / "tuf" / "targets"
        self._lock = state_dir / "tuf" / "lock"
        with _translated("the trust anchor"):
            self._cache.mkdir(parents=True, exist_ok=True)
            self._targets.mkdir(parents=True, exist_ok=True)
        with self._exclusive("the trust anchor"):
            for leftover in self._cache.glob("tmp*"):  # of a process that was killed while writing
                leftover.unlink()
            self._updater = Updater(
                metadata_dir=str(self._cache),
                metadata_base_url="metadata/",
                target_dir=str(self._targets),
                target_base_url="targets/",
                fetcher=_PartFetcher(fetch),
                config=UpdaterConfig(targets_max_length=limits.MAX_METADATA_BYTES, max_root_rotations=MAX_ROOT_ROTATIONS),
                bootstrap=(state_dir / "tuf" / "root.json").read_bytes(),
            )

    def refresh(self) -> None:
        """Bring the metadata up to date: root, timestamp, snapshot, targets. Raises UntrustedError or NetworkError."""
        with self._exclusive("the fleet's metadata"):
            self._updater.refresh()
            _sync_files(self._cache)  # so that a power cut cannot make the device forget which versions it has seen

    def verify_order(self, signed: Signed, *, device: str, now: datetime, min_generation: int = 0) -> Desired | Command:
        """Return what the envelope carries if the director signed it, for this device, and it still holds.

        Args:
            signed: as it came.
            device: this device's id; an order for another one is refused.
            now: aware; a command that has expired is refused.
            min_generation: a desired state with a lower generation is refused.
        """
        key = self._director_keys().get(signed.keyid)
        if key is None:
            raise UntrustedError(f"the order is signed by key {signed.keyid[:12]}, which {DIRECTOR_TARGET} does not name")
        try:
            Ed25519PublicKey.from_public_bytes(key).verify(signed.signature, signed.payload)
        except (InvalidSignature, ValueError) as exc:
            raise UntrustedError(f"the order's signature by key {signed.keyid[:12]} is wrong") from exc
        try:
            order = decode_order(signed)
        except ContractError as exc:
            raise UntrustedError(f"the order is signed but is not one that this agent knows: {exc}") from exc
        if order.device != device:
            raise UntrustedError(f"the order is for device {order.device}, this is {device}")
        if isinstance(order, Desired):
            if order.generation < min_generation:
                raise UntrustedError(f"the order has generation {order.generation}, {min_generation} was already seen")
        elif order.expires_at <= now.timestamp() * 1000:
            raise UntrustedError(f"the command {order.id} has expired")
        return order

    def fetch_manifest(self, ref: ReleaseRef) -> bytes:
        """The manifest of a release: TUF lists it, and its digest is the one that the order names."""
        target = manifest_target(ref.model, ref.version)
        manifest = self._fetch_target(target, max_length=limits.MAX_MANIFEST_BYTES)
        if not hmac.compare_digest(digest_of(manifest), ref.manifest):
            raise UntrustedError(f"{target} has digest {digest_of(manifest)[:12]}, the order names {ref.manifest[:12]}")
        return manifest

    def fetch_task(self, task: str, digest: str) -> bytes:
        """The code bundle of a task: TUF lists it, and its digest is the one asked for."""
        target = f"tasks/{task}/{digest}.py"
        bundle = self._fetch_target(target, max_length=limits.MAX_METADATA_BYTES)
        if not hmac.compare_digest(digest_of(bundle), digest):
            raise UntrustedError(f"{target} has digest {digest_of(bundle)[:12]}")
        return bundle

    def fetch_agent(self, version: str, digest: str) -> bytes:
        """The wheel of a version of this agent: TUF lists it, and its digest is the one that the order names."""
        target = f"agents/{agent_wheel(version)}"
        wheel = self._fetch_target(target, max_length=limits.MAX_METADATA_BYTES)
        if not hmac.compare_digest(digest_of(wheel), digest):
            raise UntrustedError(f"{target} has digest {digest_of(wheel)[:12]}, the order names {digest[:12]}")
        return wheel

    def _fetch_target(self, target: str, *, max_length: int) -> bytes:
        with self._exclusive(target):
            info = self._updater.get_targetinfo(target)
            if info is None:
                raise UntrustedError(f"{target} is not among the fleet's signed targets")
            if info.length > max_length:
                raise UntrustedError(f"{target} has {info.length} bytes, at most {max_length} are allowed")
            path = self._updater.find_cached_target(info) or self._updater.download_target(info)
            data = Path(path).read_bytes()
            # Read back from disk: what is returned must be what was verified.
            info.verify_length_and_hashes(data)
            _forget_oldest(self._targets, keep=_CACHED_TARGETS)
            return data

    @contextmanager
    def _exclusive(self, what: str) -> Iterator[None]:
        """Deploy, train and verify children may run at once, but python-tuf's cache is for one at a time."""
        with _translated(what), self._lock.open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # released by closing, and by the kernel if this process is killed
            yield

    def _director_keys(self) -> dict[str, bytes]:
        data = self._fetch_target(DIRECTOR_TARGET, max_length=limits.METADATA_PART_BYTES)
        try:
            named = msgspec.json.decode(data, type=_Director).keys
            keys = {keyid: base64.b64decode(text, validate=True) for keyid, text in named.items()}
        except (msgspec.DecodeError, binascii.Error) as exc:
            raise UntrustedError(f"{DIRECTOR_TARGET} does not hold keys: {exc}") from exc
        return {keyid: key for keyid, key in keys.items() if digest_of(key) == keyid}


class _Director(msgspec.Struct, frozen=True):
    keys: dict[str, str]  # sha256 of the raw public key -> the key in base64


class _PartFetcher(FetcherInterface):
    """TUF's downloads as questions for parts. The base class stops reading at the length that the metadata allows."""

    def __init__(self, fetch: PartSource) -> None:
        self._fetch_part = fetch

    def _fetch(self, url: str) -> Iterator[bytes]:
        name = unquote(url)
        first = self._fetch_part(name, 0)
        if first.parts == 0:
            raise DownloadHTTPError(f"the server has no {name}", 404)
        if first.parts > _MAX_PARTS:
            raise DownloadLengthMismatchError(f"{name} is said to have {first.parts} parts, at most {_MAX_PARTS} are allowed")
        yield _checked(first.data, name)
        for part in range(1, first.parts):
            yield _checked(self._fetch_part(name, part).data, name)


def _checked(data: bytes, name: str) -> bytes:
    # An empty part would let a server keep us asking without ever reaching a length limit.
    if not 0 < len(data) <= limits.METADATA_PART_BYTES:
        raise DownloadLengthMismatchError(f"a part of {name} has {len(data)} bytes, expected 1 to {limits.METADATA_PART_BYTES}")
    return data


@contextmanager
def _translated(what: str) -> Iterator[None]:
    """TUF's errors as ours, grouped by what to do about them."""
    try:
        yield
    except DownloadLengthMismatchError as exc:
        raise UntrustedError(f"{what}: {exc}") from exc
    except DownloadError as exc:
        raise NetworkError(f"{what}: {exc}") from exc
    except RepositoryError as exc:
        raise UntrustedError(f"{what} cannot be trusted: {exc}") from exc
    except OSError as exc:
        raise StorageError(f"{what}: {exc}") from exc


def _sync_files(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _forget_oldest(folder: Path, *, keep: int) -> None:
    files = sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime_ns, reverse=True)
    for path in files[keep:]:
        path.unlink(missing_ok=True)
