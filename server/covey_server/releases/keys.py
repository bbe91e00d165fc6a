"""Private signing keys in PEM files: `keys/offline/root.pem` and `keys/online/{targets,snapshot,timestamp,director}.pem`.

The offline key signs root metadata only; an operator takes it away from the server after `covey init`, and brings it back to
renew root. The online keys stay, because releases and orders are signed without a person. With `keys.passphrase_file` all of them are
made encrypted (PKCS#8); the file is best a credential of the service manager, so that a copy of the work folder signs nothing.
"""

from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from covey_server.errors import UnavailableError
from covey_server.releases.files import write_atomic
from covey_server.settings import Settings

ONLINE_ROLES = ("targets", "snapshot", "timestamp")
LEAST_PASSPHRASE = 12  # characters
_ENCRYPTED = b"-----BEGIN ENCRYPTED PRIVATE KEY-----"


def offline_key_path(settings: Settings) -> Path:
    """Where root's private key is made."""
    return settings.path("keys", "offline", "root.pem")


def online_key_path(settings: Settings, role: str) -> Path:
    """Where the private key of an online role is."""
    return settings.path("keys", "online", f"{role}.pem")


def read_passphrase(settings: Settings) -> bytes | None:
    """What opens the keys; None if they are not encrypted. Raises UnavailableError."""
    name = settings.keys.passphrase_file
    return read_secret(settings.path(name), "keys.passphrase_file") if name else None


def read_secret(path: Path, what: str) -> bytes:
    """The first line of a file. Raises UnavailableError if it is empty or not there."""
    try:
        line = path.read_bytes().partition(b"\n")[0].strip()
    except OSError as exc:
        raise UnavailableError(f"{what}: cannot read {path}: {exc.strerror}") from exc
    if not line:
        raise UnavailableError(f"{what}: the first line of {path} is empty")
    return line


def make_key(path: Path, passphrase: bytes | None = None) -> Ed25519PrivateKey:
    """Make a key and write it, readable by its owner only."""
    key = Ed25519PrivateKey.generate()
    write_key(path, key, passphrase)
    return key


def write_key(path: Path, key: Ed25519PrivateKey, passphrase: bytes | None) -> None:
    """Write a key in place of what is there, readable by its owner only; encrypted if there is a passphrase."""
    how = BestAvailableEncryption(passphrase) if passphrase else NoEncryption()
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_atomic(path, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, how), mode=0o600)


def is_encrypted(path: Path) -> bool:
    """Whether a key file needs a passphrase."""
    try:
        return path.read_bytes().lstrip().startswith(_ENCRYPTED)
    except OSError:
        return False


def load_private_key(path: Path, passphrase: bytes | None = None) -> Ed25519PrivateKey:
    """Read a key for signing raw bytes; one that is not encrypted needs no passphrase. Raises UnavailableError."""
    encrypted = is_encrypted(path)
    if encrypted and passphrase is None:
        raise UnavailableError(f"{path} is encrypted: name the file with its passphrase in keys.passphrase_file, or give it when asked")
    try:
        key = load_pem_private_key(path.read_bytes(), passphrase if encrypted else None)
    except FileNotFoundError as exc:
        raise UnavailableError(f"there is no key {path}; `covey init` makes it, or bring it back from where you keep it") from exc
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as exc:
        wrong = "the passphrase is wrong, or the file is damaged" if encrypted else "it is no PEM private key"
        raise UnavailableError(f"{path} cannot be read: {wrong} ({exc})") from exc
    if not isinstance(key, Ed25519PrivateKey):
        raise UnavailableError(f"{path} must hold an Ed25519 key, it holds {type(key).__name__}")
    return key
