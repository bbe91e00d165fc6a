"""Random secrets: API tokens, login cookies, invitation secrets. Only their sha256 is ever stored.

A plain sha256 is enough because the secrets have 256 random bits: there is nothing to guess, so nothing to slow down.
"""

import hashlib
import secrets

TOKEN_PREFIX = "covey_"  # noqa: S105 - lets secret scanners recognise a token that leaked


def new_secret() -> str:
    """256 random bits in base64url."""
    return secrets.token_urlsafe(32)


def new_token() -> str:
    """A new API token."""
    return TOKEN_PREFIX + new_secret()


def hash_secret(secret: str) -> str:
    """What is stored of a secret: sha256 in lower-case hex."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()
