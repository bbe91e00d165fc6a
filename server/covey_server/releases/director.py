"""The director: the online key that signs orders (desired states and commands) to devices.

Devices learn its public key from the TUF target `director.json`, so a broker can delay an order but not forge one, and the key
can be changed without touching a device.
"""

import base64
import json
from typing import Self

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from covey_contract.codec import digest_of
from covey_contract.messages import Signed
from covey_server.parts import Repository
from covey_server.releases.keys import load_private_key, make_key, online_key_path
from covey_server.settings import Settings

DIRECTOR_TARGET = "director.json"


class FileDirector:
    """`parts.Director` with its key in `keys/online/director.pem`."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self._public = key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        self.keyid = digest_of(self._public)

    @classmethod
    def create(cls, settings: Settings, repository: Repository) -> Self:
        """Make the key, or take the one that a broken-off attempt left, and name it in the repository."""
        path = online_key_path(settings, "director")
        if not path.exists():
            make_key(path)
        director = cls.load(settings)
        repository.add_target(DIRECTOR_TARGET, director.target())
        return director

    @classmethod
    def load(cls, settings: Settings) -> Self:
        """Read the key. Raises UnavailableError."""
        return cls(load_private_key(online_key_path(settings, "director")))

    def target(self) -> bytes:
        """The content of `director.json`."""
        keys = {self.keyid: base64.b64encode(self._public).decode("ascii")}
        return json.dumps({"keys": keys}, sort_keys=True).encode("utf-8")

    def sign(self, payload: bytes) -> Signed:
        """Sign exact bytes."""
        return Signed(payload=payload, keyid=self.keyid, signature=self._key.sign(payload))
