"""Passwords as argon2id hashes. Secrets that are random already (tokens, logins) need only sha256: see `tokens.py`."""

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from covey_server.errors import InvalidInputError

MIN_PASSWORD_CHARS = 8
MAX_PASSWORD_CHARS = 1024  # hashing a megabyte is work that an attacker could order

_hasher = PasswordHasher()  # argon2id with the parameters of RFC 9106, low memory


def hash_password(password: str) -> str:
    """The argon2id hash to store. Raises InvalidInputError for a password that is too short or too long."""
    if not MIN_PASSWORD_CHARS <= len(password) <= MAX_PASSWORD_CHARS:
        raise InvalidInputError(f"a password must have {MIN_PASSWORD_CHARS} to {MAX_PASSWORD_CHARS} characters, got {len(password)}")
    return _hasher.hash(password)


def is_password(password: str, *, stored: str) -> bool:
    """Whether `password` is the one that was hashed."""
    if len(password) > MAX_PASSWORD_CHARS:
        return False
    try:
        return _hasher.verify(stored, password)
    except (VerificationError, InvalidHashError):
        return False
