"""Who signs for a role: a PEM file, or a key on a PKCS#11 token. And the next one, which counts once a new root names it.

keys/online/targets.pem          the key                 keys/online/targets.pkcs11       or where it is on a token, and its public half
keys/online/targets.next.pem     made by `covey keys rotate`, named by a draft of root, moved into place when that root is published
"""

import os
from pathlib import Path
from typing import Any

import msgspec
from securesystemslib.exceptions import UnsupportedLibraryError
from securesystemslib.signer import CryptoSigner, HSMSigner, Key, Signer, SSlibKey

from covey_server.errors import InvalidInputError, UnavailableError
from covey_server.releases.files import sync_folder, write_atomic
from covey_server.releases.keys import load_private_key, make_key, online_key_path, read_passphrase, read_secret
from covey_server.settings import Settings


class TokenKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`<role>.pkcs11`, and what `covey keys make` writes as a `.pub` file: a public key, and where its private half is."""

    keyid: str
    key: dict[str, Any]  # as TUF writes keys
    uri: str = ""  # hsm:ID?label=TOKEN


def load_signer(settings: Settings, role: str) -> Signer:
    """The signer that counts now. Raises UnavailableError."""
    token = _token_path(settings, role)
    if token.exists():
        return _open_token(settings, token)
    return CryptoSigner(load_private_key(online_key_path(settings, role), read_passphrase(settings)))


def next_key(settings: Settings, role: str) -> Key | None:
    """The public half of the key that waits for a new root; None if none waits."""
    token, file = _token_path(settings, f"{role}.next"), online_key_path(settings, f"{role}.next")
    if token.exists():
        return public_key(read_public(token))
    if file.exists():
        return CryptoSigner(load_private_key(file, read_passphrase(settings))).public_key
    return None


def make_next(settings: Settings, role: str) -> Key:
    """Make the next key of a role as a file."""
    path = online_key_path(settings, f"{role}.next")
    _token_path(settings, f"{role}.next").unlink(missing_ok=True)
    return CryptoSigner(make_key(path, read_passphrase(settings))).public_key


def take_next_from_token(settings: Settings, role: str, *, number: int, label: str) -> Key:
    """Let the next key of a role be one that is on the token already. Raises UnavailableError."""
    use_module(settings)
    try:
        uri, key = HSMSigner.import_(number, label or None, lambda _what: _read_pin(settings))
    except UnsupportedLibraryError as exc:
        raise UnavailableError('PKCS#11 needs a package that is not here: pip install "covey[pkcs11]"') from exc
    except Exception as exc:  # the library's own errors have no base of ours, nor one of their own that is public
        raise UnavailableError(f"key {number} cannot be read from the token: {exc or type(exc).__name__}") from exc
    online_key_path(settings, f"{role}.next").unlink(missing_ok=True)
    write_public(_token_path(settings, f"{role}.next"), key, uri=uri)
    return key


def put_in_place(settings: Settings, role: str) -> None:
    """The next key becomes the one that counts; by one rename, and nothing is lost if it is done again."""
    token, file = _token_path(settings, f"{role}.next"), online_key_path(settings, f"{role}.next")
    if token.exists():
        token.replace(_token_path(settings, role))
        online_key_path(settings, role).unlink(missing_ok=True)
    elif file.exists():
        file.replace(online_key_path(settings, role))
        _token_path(settings, role).unlink(missing_ok=True)
    sync_folder(online_key_path(settings, role).parent)


def write_public(path: Path, key: Key, *, uri: str = "") -> None:
    """The public half of a key, and where the private half is."""
    write_atomic(path, msgspec.json.format(msgspec.json.encode(TokenKey(key.keyid, key.to_dict(), uri)), indent=2))


def read_public(path: Path) -> TokenKey:
    """What `write_public` wrote. Raises InvalidInputError."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=TokenKey)
    except (OSError, msgspec.DecodeError) as exc:
        raise InvalidInputError(f"{path} holds no public key as `covey keys make` writes it: {exc}") from exc


def public_key(described: TokenKey) -> Key:
    """The key itself. Raises InvalidInputError."""
    try:
        return SSlibKey.from_dict(described.keyid, dict(described.key))
    except (KeyError, ValueError, TypeError) as exc:
        raise InvalidInputError(f"a public key cannot be read: {exc}") from exc


def open_signer(described: TokenKey, settings: Settings) -> Signer:
    """A signer for a key on a token. Raises UnavailableError."""
    use_module(settings)
    try:
        return HSMSigner.from_priv_key_uri(described.uri, public_key(described), lambda _what: _read_pin(settings))
    except (UnsupportedLibraryError, ValueError) as exc:
        raise UnavailableError(f"the key on the token cannot be used: {exc}") from exc


def use_module(settings: Settings) -> None:
    """Tell the library which token it is about; it knows no other way than this variable. Raises UnavailableError."""
    module = settings.keys.pkcs11_module
    if not module or not Path(module).exists():
        raise UnavailableError(f"keys.pkcs11_module must name your token's PKCS#11 library, it is {module or 'empty'}")
    os.environ["PYKCS11LIB"] = module


def _open_token(settings: Settings, path: Path) -> Signer:
    return open_signer(read_public(path), settings)


def _token_path(settings: Settings, role: str) -> Path:
    return settings.path("keys", "online", f"{role}.pkcs11")


def _read_pin(settings: Settings) -> str:
    if not settings.keys.pkcs11_pin_file:
        raise UnavailableError("keys.pkcs11_pin_file must name the file with the token's PIN")
    return read_secret(settings.path(settings.keys.pkcs11_pin_file), "keys.pkcs11_pin_file").decode("utf-8", "replace")
