"""Ed25519 keys in PEM files: `keys/offline/root.pem` and `keys/online/{targets,snapshot,timestamp,director}.pem`.

The offline key signs root metadata only; an operator takes it away from the server after `covey init`, and brings it back to
renew root. The online keys stay, because releases and orders are signed without a person.
"""

from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from securesystemslib.signer import CryptoSigner

from covey_server.errors import UnavailableError
from covey_server.releases.files import write_atomic
from covey_server.settings import Settings

ONLINE_ROLES = ("targets", "snapshot", "timestamp")


def offline_key_path(settings: Settings) -> Path:
    """Where root's private key is made."""
    return settings.path("keys", "offline", "root.pem")


def online_key_path(settings: Settings, role: str) -> Path:
    """Where the private key of an online role is."""
    return settings.path("keys", "online", f"{role}.pem")


def make_key(path: Path) -> CryptoSigner:
    """Make a key and write it, readable by its owner only."""
    signer = CryptoSigner.generate_ed25519()
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_atomic(path, signer.private_bytes, mode=0o600)
    return signer


def load_key(path: Path) -> CryptoSigner:
    """Read a key. Raises UnavailableError if it is not there or is no Ed25519 key."""
    return CryptoSigner(load_private_key(path))


def load_private_key(path: Path) -> Ed25519PrivateKey:
    """Read a key for signing raw bytes. Raises UnavailableError if it is not there or is no Ed25519 key."""
    try:
        key = load_pem_private_key(path.read_bytes(), None)
    except FileNotFoundError as exc:
        raise UnavailableError(f"there is no key {path}; `covey init` makes it, or bring it back from where you keep it") from exc
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as exc:
        raise UnavailableError(f"{path} cannot be read as an unencrypted PEM private key: {exc}") from exc
    if not isinstance(key, Ed25519PrivateKey):
        raise UnavailableError(f"{path} must hold an Ed25519 key, it holds {type(key).__name__}")
    return key
