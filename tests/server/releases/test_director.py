"""The director signs exact bytes with the key that director.json names."""

import base64
import hashlib
import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from tests.server.releases.tuf_device import TufDevice

from covey_server.errors import UnavailableError
from covey_server.releases.director import FileDirector
from covey_server.releases.keys import online_key_path
from covey_server.releases.repository import TufRepository
from covey_server.settings import Settings


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(work_dir=tmp_path / "work")


@pytest.fixture
def repository(settings: Settings) -> TufRepository:
    return TufRepository.create(settings, datetime.now(UTC))


def public_key(repository: TufRepository, folder: Path, keyid: str) -> Ed25519PublicKey:
    target = TufDevice(folder, repository).fetch("director.json")
    assert target is not None
    raw = base64.b64decode(json.loads(target)["keys"][keyid])
    assert hashlib.sha256(raw).hexdigest() == keyid
    return Ed25519PublicKey.from_public_bytes(raw)


def test_a_device_verifies_an_order_by_the_key_in_director_json(settings: Settings, repository: TufRepository, tmp_path: Path) -> None:
    signed = FileDirector.create(settings, repository).sign(b"order")
    key = public_key(repository, tmp_path / "device", signed.keyid)
    key.verify(signed.signature, b"order")
    with pytest.raises(InvalidSignature):
        key.verify(signed.signature, b"order ")


def test_another_process_loads_the_same_key(settings: Settings, repository: TufRepository) -> None:
    assert (
        FileDirector.create(settings, repository).keyid
        == FileDirector.load(settings).keyid
        == FileDirector.create(settings, repository).keyid
    )


def test_a_missing_or_broken_key_is_refused_with_the_reason(settings: Settings) -> None:
    with pytest.raises(UnavailableError, match="covey init"):
        FileDirector.load(settings)
    path = online_key_path(settings, "director")
    path.parent.mkdir(parents=True)
    path.write_bytes(b"not a key")
    with pytest.raises(UnavailableError, match="cannot be read"):
        FileDirector.load(settings)
