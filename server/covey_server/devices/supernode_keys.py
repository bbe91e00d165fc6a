"""The public key by which a participant's Flower SuperNode authenticates, as it arrives at enrolment."""

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from covey_server.errors import InvalidInputError

_MAX_CHARS = 1000


def check_supernode_key(text: str) -> str:
    """The key as OpenSSH text without its comment; "" when the device cannot train. Raises InvalidInputError."""
    if not text.strip():
        return ""
    if len(text) > _MAX_CHARS:
        raise InvalidInputError(f"the SuperNode key has {len(text)} characters, at most {_MAX_CHARS} are allowed")
    try:
        key = serialization.load_ssh_public_key(text.strip().encode("ascii"))
    except (ValueError, UnsupportedAlgorithm) as exc:
        raise InvalidInputError(f"expected the SuperNode's public key as OpenSSH text: {exc}") from exc
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1 | ec.SECP384R1):
        raise InvalidInputError("the SuperNode key must be EC P-256 or P-384 (Flower takes no other)")
    return key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode()
