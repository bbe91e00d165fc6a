"""Changing root: a draft, signatures by its holders in turn, and the check that enough of them have signed. Pure.

Root says which keys count for each role and how many must sign (TUF specification, section 4.3). A new version counts if enough holders
of the version before and enough of its own have signed it (section 5.3.4); so a draft goes from holder to holder as one file.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from securesystemslib.exceptions import UnverifiedSignatureError
from securesystemslib.signer import Key, Signer
from tuf.api.exceptions import RepositoryError, UnsignedMetadataError
from tuf.api.metadata import Metadata, Root
from tuf.api.serialization.json import JSONSerializer

from covey_server.errors import ConflictError, InvalidInputError, UnavailableError

SERIALIZER = JSONSerializer(compact=True)
MAX_THRESHOLD = 16


@dataclass(frozen=True, slots=True)
class Need:
    """Signatures that one root asks for."""

    threshold: int
    signed: list[str]
    unsigned: list[str]

    @property
    def missing(self) -> int:
        """How many more."""
        return max(0, self.threshold - len(self.signed))


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a draft stands."""

    version: int
    expires: datetime
    roles: dict[str, list[str]]  # role -> key ids
    thresholds: dict[str, int]
    own: Need
    before: Need | None = None  # None: the version before is not known here
    strangers: list[str] = field(default_factory=list)  # signatures of keys that the new root does not name

    @property
    def is_complete(self) -> bool:
        """Whether it may be published; only known where the version before is."""
        return self.before is not None and not self.own.missing and not self.before.missing


def parse_root(data: bytes) -> Metadata[Root]:
    """Root metadata. Raises InvalidInputError."""
    try:
        metadata = Metadata[Root].from_bytes(data)
    except (RepositoryError, ValueError) as exc:
        raise InvalidInputError(f"this is no root metadata: {exc}") from exc
    if metadata.signed.type != Root.type:
        raise InvalidInputError(f"expected root metadata, got {metadata.signed.type}")
    return metadata


def draft_root(
    current: bytes,
    *,
    expires: datetime,
    add: Iterable[Key] = (),
    remove: Iterable[str] = (),
    threshold: int | None = None,
    replace: Mapping[str, Key] | None = None,
) -> bytes:
    """The next version of root, unsigned. `replace`: role -> its new only key. Raises InvalidInputError."""
    root = parse_root(current).signed
    root.version += 1
    root.expires = expires.astimezone(UTC).replace(microsecond=0)
    for key in add:
        root.add_key(key, Root.type)
    for start in remove:
        root.revoke_key(_find(root, start), Root.type)
    for role, key in (replace or {}).items():
        for keyid in list(root.roles[role].keyids):
            root.revoke_key(keyid, role)
        root.add_key(key, role)
    if threshold is not None:
        root.roles[Root.type].threshold = threshold
    holders, wanted = len(root.roles[Root.type].keyids), root.roles[Root.type].threshold
    if not 1 <= wanted <= min(holders, MAX_THRESHOLD):
        raise InvalidInputError(f"root would need {wanted} signatures and have {holders} keys: nobody could ever change it again")
    return Metadata(root).to_bytes(SERIALIZER)


def sign_root(data: bytes, signer: Signer) -> bytes:
    """The same draft with one more signature."""
    metadata = parse_root(data)
    put_signature(metadata, signer, append=True)
    return metadata.to_bytes(SERIALIZER)


def put_signature(metadata: Metadata[Any], signer: Signer, *, append: bool = False) -> None:
    """Sign metadata of any role. Raises UnavailableError if the key, which may be on a token, does not."""
    try:
        metadata.sign(signer, append=append)
    except UnsignedMetadataError as exc:
        cause = exc.__cause__
        why = str(cause) or type(cause).__name__ if cause else str(exc)
        key = signer.public_key.keyid[:12]
        raise UnavailableError(
            f"{metadata.signed.type} cannot be signed by key {key}: {why}; is it on the token, and its PIN right?"
        ) from exc


def look_at(data: bytes, previous: bytes | None = None) -> Progress:
    """Where a draft stands; with the version before, also what that asks for. Raises InvalidInputError."""
    metadata = parse_root(data)
    root = metadata.signed
    payload = metadata.signed_bytes
    own = root.get_verification_result(Root.type, payload, metadata.signatures)
    before = parse_root(previous).signed.get_verification_result(Root.type, payload, metadata.signatures) if previous else None
    known = set(own.signed) | set(own.unsigned)
    return Progress(
        version=root.version,
        expires=root.expires,
        roles={name: list(role.keyids) for name, role in root.roles.items()},
        thresholds={name: role.threshold for name, role in root.roles.items()},
        own=Need(own.threshold, sorted(own.signed), sorted(own.unsigned)),
        # A result is false where signatures are missing, which is not the same as none.
        before=Need(before.threshold, sorted(before.signed), sorted(before.unsigned)) if before is not None else None,
        strangers=sorted(set(metadata.signatures) - known),
    )


def check_publishable(data: bytes, previous: bytes, *, now: datetime | None) -> Root:
    """Root if it may follow `previous`; `now` is None for one on the way to a later one, which may have expired.

    Raises ConflictError or InvalidInputError, saying what is missing.
    """
    progress, root = look_at(data, previous), parse_root(data).signed
    expected = parse_root(previous).signed.version + 1
    if root.version != expected:
        raise ConflictError(f"this is version {root.version} of root, expected {expected}: make the draft anew with `covey keys draft`")
    if now is not None and root.expires <= now:
        raise ConflictError(f"this root has expired at {root.expires.isoformat()}")
    if not root.consistent_snapshot:
        raise ConflictError("this root does not ask for consistent snapshots, without which an update in mid-fetch breaks")
    for need, whose in ((progress.before, "the present root"), (progress.own, "the new root")):
        if need is not None and need.missing:
            waiting = ", ".join(keyid[:12] for keyid in need.unsigned)
            raise ConflictError(f"{need.missing} more signatures by keys of {whose} are missing, of: {waiting}")
    return root


def is_signed_for(root: Root, role: str, payload: bytes, signatures: Mapping[str, object]) -> bool:
    """Whether metadata of a role carries what root asks for."""
    try:
        root.verify_delegate(role, payload, dict(signatures))  # type: ignore[arg-type]  # TUF's own signatures
    except (RepositoryError, UnverifiedSignatureError, ValueError):
        return False
    return True


def _find(root: Root, start: str) -> str:
    holders = root.roles[Root.type].keyids
    found = [keyid for keyid in holders if keyid.startswith(start)]
    if len(found) != 1:
        raise InvalidInputError(f"{start!r} must be the beginning of one of root's keys: {', '.join(keyid[:12] for keyid in holders)}")
    return found[0]
