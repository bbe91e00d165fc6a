"""The director: the online key that signs orders (desired states and commands) to devices.

Devices learn its public key from the TUF target `director.json`, so a broker can delay an order but not forge one, and the key
can be changed without touching a device: both keys are named while `director.previous.pem` is there, so that orders on their way still
hold, and the worker signs every desired state anew when it starts with another key.
"""

import base64
import json
from typing import Self

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from covey_contract.codec import digest_of
from covey_contract.messages import Signed
from covey_server.errors import ConflictError
from covey_server.parts import Repository
from covey_server.releases.keys import load_private_key, make_key, online_key_path, read_passphrase
from covey_server.settings import Settings

DIRECTOR_TARGET = "director.json"
ROLE, PREVIOUS = "director", "director.previous"


class FileDirector:
    """`parts.Director` with its key in `keys/online/director.pem`."""

    def __init__(self, key: Ed25519PrivateKey, previous: Ed25519PrivateKey | None = None) -> None:
        self._key = key
        self._named = {digest_of(raw): raw for raw in (_raw(each) for each in (key, previous) if each is not None)}
        self.keyid = digest_of(_raw(key))

    @classmethod
    def create(cls, settings: Settings, repository: Repository) -> Self:
        """Make the key, or take the one that a broken-off attempt left, and name it in the repository."""
        path = online_key_path(settings, ROLE)
        _finish_moving(settings)
        if not path.exists():
            make_key(path, read_passphrase(settings))
        director = cls.load(settings)
        repository.add_target(DIRECTOR_TARGET, director.target())
        return director

    @classmethod
    def load(cls, settings: Settings) -> Self:
        """Read the key, and the one before if it still holds. Raises UnavailableError."""
        _finish_moving(settings)
        passphrase, before = read_passphrase(settings), online_key_path(settings, PREVIOUS)
        previous = load_private_key(before, passphrase) if before.exists() else None
        return cls(load_private_key(online_key_path(settings, ROLE), passphrase), previous)

    @classmethod
    def rotate(cls, settings: Settings, repository: Repository) -> Self:
        """Begin with another key, beside the present one. Raises ConflictError if a change is under way already."""
        path, before = online_key_path(settings, ROLE), online_key_path(settings, PREVIOUS)
        if before.exists():
            raise ConflictError("the director's key is being changed already: finish that first (covey keys rotate-director --finish)")
        fresh = online_key_path(settings, f"{ROLE}.next")
        make_key(fresh, read_passphrase(settings))
        # Named before it signs: cut off here, devices know one key more than is used.
        following = cls(load_private_key(fresh, read_passphrase(settings)), load_private_key(path, read_passphrase(settings)))
        repository.add_target(DIRECTOR_TARGET, following.target())
        path.replace(before)
        fresh.replace(path)
        return following

    @classmethod
    def finish_rotation(cls, settings: Settings, repository: Repository) -> Self:
        """The key before holds no longer."""
        online_key_path(settings, PREVIOUS).unlink(missing_ok=True)
        return cls.create(settings, repository)

    def target(self) -> bytes:
        """The content of `director.json`."""
        keys = {keyid: base64.b64encode(raw).decode("ascii") for keyid, raw in self._named.items()}
        return json.dumps({"keys": keys}, sort_keys=True).encode("utf-8")

    def sign(self, payload: bytes) -> Signed:
        """Sign exact bytes."""
        return Signed(payload=payload, keyid=self.keyid, signature=self._key.sign(payload))


def _finish_moving(settings: Settings) -> None:
    """A rotation that was cut off between its two renames left no key in place."""
    path, fresh = online_key_path(settings, ROLE), online_key_path(settings, f"{ROLE}.next")
    if fresh.exists() and not path.exists():
        fresh.replace(path)


def _raw(key: Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
