"""The cases that TUF's public conformance suite asks of a client, against ours: python-tuf behind our fetcher, cache and anchor.

The suite itself is no package that could be installed; its cases are mirrored here by name and meaning.
"""

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from securesystemslib.signer import CryptoSigner
from tests.fakes.tuf_repository import TufRepository
from tuf.api.metadata import Metadata, MetaFile, Root

from covey_agent.workers import trust
from covey_agent.workers.errors import UntrustedError
from covey_agent.workers.trust import TrustedMetadata
from covey_contract.codec import digest_of
from covey_contract.messages import ReleaseRef

MANIFEST = b"a manifest"
REF = ReleaseRef(model="tiny", version=1, manifest=digest_of(MANIFEST))
PAST = (datetime.now(UTC) - timedelta(days=1)).replace(microsecond=0)


class Client:
    """A device over its repository; each look is a new process's."""

    def __init__(self, folder: Path) -> None:
        self.repository = TufRepository()
        self.repository.add_target("releases/tiny/1.json", MANIFEST)
        self.repository.publish()
        self.folder = self.repository.enrol(folder)

    def refresh(self) -> TrustedMetadata:
        trusted = TrustedMetadata(self.folder, self.repository.fetch_part)
        trusted.refresh()
        return trusted

    def refused(self, match: str | None = None) -> None:
        """It does not believe what is served now, and what it believed before is still there."""
        before = self.versions()
        with pytest.raises(UntrustedError, match=match):
            self.refresh()
        after = self.versions()
        assert all(after[role] >= version for role, version in before.items())

    def versions(self) -> dict[str, int]:
        """What its cache holds."""
        cache = self.folder / "tuf" / "cache"
        found = {path.stem: json.loads(path.read_bytes())["signed"]["version"] for path in cache.glob("*.json")}
        return {role: version for role, version in found.items() if role in {"root", "timestamp", "snapshot", "targets"}}

    def asked(self) -> list[str]:
        """What it asked for since the last look."""
        names = [name for name, _ in self.repository.asked]
        self.repository.asked.clear()
        return names


@pytest.fixture
def client(tmp_path: Path) -> Client:
    return Client(tmp_path)


# -- basics ------------------------------------------------------------------------------------------------------------


def test_basic_refresh_requests(client: Client) -> None:
    client.refresh()
    expected = ["metadata/2.root.json", "metadata/timestamp.json", "metadata/1.snapshot.json", "metadata/1.targets.json"]
    assert client.asked() == expected
    client.refresh()
    assert client.asked() == expected[:2], "what is known is not asked for again"
    client.repository.publish()
    client.refresh()
    assert client.asked() == [*expected[:2], "metadata/2.snapshot.json", "metadata/2.targets.json"]
    assert client.versions() == {"root": 1, "timestamp": 2, "snapshot": 2, "targets": 2}


def test_targets_are_downloaded_and_kept(client: Client) -> None:
    assert client.refresh().fetch_manifest(REF) == MANIFEST
    client.asked()
    assert client.refresh().fetch_manifest(REF) == MANIFEST
    assert not any(name.startswith("targets/") for name in client.asked())


@pytest.mark.parametrize("role", ["root", "timestamp", "snapshot", "targets"])
def test_incorrect_metadata_type(client: Client, role: str) -> None:
    client.refresh()
    repository = client.repository
    if role == "root":
        repository.files["metadata/2.root.json"] = repository.files["metadata/1.targets.json"]
    else:
        repository.publish()
        name = "metadata/timestamp.json" if role == "timestamp" else f"metadata/2.{role}.json"
        repository.files[name] = repository.files["metadata/1.root.json"]
    client.refused()


def test_unsigned_metadata(client: Client) -> None:
    for name in ("timestamp", "1.snapshot", "1.targets"):
        document = json.loads(client.repository.files[f"metadata/{name}.json"])
        kept = client.repository.files[f"metadata/{name}.json"]
        client.repository.files[f"metadata/{name}.json"] = json.dumps(document | {"signatures": []}).encode()
        client.refused("cannot be trusted")
        client.repository.files[f"metadata/{name}.json"] = kept
    client.refresh()


def test_invalid_metadata_version(client: Client) -> None:
    client.refresh()
    client.repository.root.version = 5  # 2 is expected
    client.repository.publish_root()
    client.repository.files["metadata/2.root.json"] = client.repository.files.pop("metadata/6.root.json")
    client.refused("version")


def test_target_that_is_served_with_other_bytes(client: Client) -> None:
    name = next(name for name in client.repository.files if name.startswith("targets/"))
    for lie in (b"A manifest", MANIFEST + b"!", b""):
        client.repository.files[name] = lie
        with pytest.raises(UntrustedError):
            client.refresh().fetch_manifest(REF)


# -- expiry ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["root", "timestamp", "snapshot", "targets"])
def test_expired_metadata_of_each_role(client: Client, role: str) -> None:
    client.refresh()
    getattr(client.repository, role).expires = PAST
    if role == "root":
        client.repository.publish_root()
    client.repository.publish()
    client.refused("expired")


def test_an_expired_root_on_the_way_is_no_obstacle(client: Client) -> None:
    alive = client.repository.root.expires
    client.repository.root.expires = PAST
    client.repository.publish_root()
    client.repository.root.expires = alive
    client.repository.publish_root()
    client.refresh()
    assert client.versions()["root"] == 3


def test_expired_local_metadata_is_replaced(client: Client) -> None:
    client.repository.timestamp.expires = client.repository.snapshot.expires = PAST
    client.repository.publish()
    client.refused("expired")
    client.repository.timestamp.expires = client.repository.snapshot.expires = datetime.now(UTC).replace(microsecond=0) + timedelta(days=1)
    client.repository.publish()
    client.refresh()
    assert client.versions()["timestamp"] == client.repository.timestamp.version


# -- rollback, freeze, mix-and-match -----------------------------------------------------------------------------------


def test_new_timestamp_version_rollback(client: Client) -> None:
    client.repository.publish()
    client.refresh()
    client.repository.timestamp.version = 0
    client.repository.publish_timestamp()
    client.refused("version")


def test_new_timestamp_snapshot_rollback(client: Client) -> None:
    client.repository.publish()
    client.refresh()
    client.repository.timestamp.version += 1
    client.repository.timestamp.snapshot_meta = MetaFile(1)
    client.repository.files["metadata/timestamp.json"] = client.repository._sign("timestamp", client.repository.timestamp)
    client.refused("version")


def test_new_snapshot_version_rollback_of_targets(client: Client) -> None:
    client.repository.publish()
    client.refresh()
    client.repository.targets.version = 0
    client.repository.publish()
    client.refused("version")


def test_snapshot_that_forgets_targets(client: Client) -> None:
    client.refresh()
    repository = client.repository
    repository.snapshot.meta = {}
    repository.snapshot.version += 1
    repository.files[f"metadata/{repository.snapshot.version}.snapshot.json"] = repository._sign("snapshot", repository.snapshot)
    repository.publish_timestamp()
    client.refused()


@pytest.mark.parametrize("role", ["snapshot", "targets"])
def test_hash_mismatch(client: Client, role: str) -> None:
    repository = client.repository
    repository.publish()
    wrong = MetaFile(2, hashes={"sha256": "0" * 64})
    if role == "targets":
        repository.snapshot.meta["targets.json"] = wrong
        repository.files["metadata/2.snapshot.json"] = repository._sign("snapshot", repository.snapshot)
    else:
        repository.timestamp.snapshot_meta = wrong
        repository.files["metadata/timestamp.json"] = repository._sign("timestamp", repository.timestamp)
    client.refused()


def test_timestamp_of_the_same_version_changes_nothing(client: Client) -> None:
    client.refresh()
    known = (client.folder / "tuf" / "cache" / "timestamp.json").read_bytes()
    repository = client.repository
    repository.timestamp.snapshot_meta = MetaFile(100)
    repository.files["metadata/timestamp.json"] = repository._sign("timestamp", repository.timestamp)
    client.refresh()
    assert (client.folder / "tuf" / "cache" / "timestamp.json").read_bytes() == known


# -- root: rotation, thresholds ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 200])
def test_root_rotations_in_a_row(client: Client, steps: int) -> None:
    client.refresh()
    for step in range(steps):
        client.repository.rotate_key(("root", "timestamp", "snapshot", "targets")[step % 4])
    client.repository.publish()
    trusted = client.refresh()
    assert client.versions()["root"] == 1 + steps
    assert trusted.fetch_manifest(REF) == MANIFEST


def test_max_root_rotations(client: Client) -> None:
    for _ in range(300):
        client.repository.rotate_key("timestamp")
    client.repository.publish()
    client.refresh()
    assert client.versions()["root"] == 301


def test_a_server_that_never_runs_out_of_roots_is_left(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trust, "MAX_ROOT_ROTATIONS", 20)
    for _ in range(50):
        client.repository.publish_root()
    client.repository.rotate_key("timestamp")
    client.repository.publish()
    client.refused()
    assert len([name for name in client.asked() if name.endswith("root.json")]) == 20


def test_a_device_enrolled_long_ago_follows_from_its_anchor(client: Client) -> None:
    for _ in range(20):
        client.repository.rotate_key("root")
    client.repository.publish()
    client.refresh()
    for path in (client.folder / "tuf" / "cache").rglob("*"):
        if path.is_file() or path.is_symlink():
            path.unlink()
    client.refresh()
    assert client.versions()["root"] == 21


def test_root_signed_by_the_new_key_only(client: Client) -> None:
    repository = client.repository
    repository.root.revoke_key(repository._signers["root"].public_key.keyid, "root")
    stranger = CryptoSigner.generate_ed25519()
    repository.root.add_key(stranger.public_key, "root")
    repository.publish_root([stranger], without_own=True)
    client.refused("cannot be trusted")


def test_root_signed_by_the_old_key_only(client: Client) -> None:
    repository = client.repository
    repository.root.revoke_key(repository._signers["root"].public_key.keyid, "root")
    repository.root.add_key(CryptoSigner.generate_ed25519().public_key, "root")
    repository.publish_root()
    client.refused("cannot be trusted")


@pytest.mark.parametrize(("signatures", "believed"), [(0, False), (1, False), (2, True), (3, True)])
def test_root_threshold_of_two_of_three(client: Client, signatures: int, believed: bool) -> None:
    client.repository.share_root(3, 2)
    client.refresh()
    holders = [client.repository._signers["root"], *client.repository.holders]
    client.repository.publish_root(holders[:signatures], without_own=True)
    if believed:
        client.refresh()
        assert client.versions()["root"] == 3
    else:
        client.refused("cannot be trusted")
        assert client.versions()["root"] == 2


def test_one_holder_who_signs_twice_is_not_two(client: Client) -> None:
    client.repository.share_root(3, 2)
    client.refresh()
    client.repository.publish_root([client.repository.holders[0]], without_own=True)
    name = "metadata/3.root.json"
    document = json.loads(client.repository.files[name])
    document["signatures"] *= 2
    client.repository.files[name] = json.dumps(document).encode()
    client.refused()


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets"])
def test_online_role_does_not_meet_its_threshold(client: Client, role: str) -> None:
    client.repository.root.add_key(CryptoSigner.generate_ed25519().public_key, role)
    client.repository.root.roles[role].threshold = 2
    client.repository.publish_root()
    client.repository.publish()
    client.refused("cannot be trusted")


def test_a_key_of_another_role_does_not_count(client: Client) -> None:
    client.repository._signers["timestamp"] = client.repository._signers["targets"]
    client.repository.publish()
    client.refused("cannot be trusted")


@pytest.mark.parametrize("make", [CryptoSigner.generate_ed25519, CryptoSigner.generate_ecdsa, CryptoSigner.generate_rsa])
def test_key_types(client: Client, make: Callable[[], CryptoSigner]) -> None:
    repository = client.repository
    for role in ("timestamp", "snapshot", "targets"):
        repository.root.revoke_key(repository._signers[role].public_key.keyid, role)
        repository._signers[role] = make()
        repository.root.add_key(repository._signers[role].public_key, role)
    repository.publish_root()
    repository.publish()
    assert client.refresh().fetch_manifest(REF) == MANIFEST


# -- recovery ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets"])
def test_fast_forward_recovery(client: Client, role: str) -> None:
    """Whoever stole an online key has counted up to where nothing can follow; the root's holders change the keys."""
    repository = client.repository
    getattr(repository, role).version = 2**31
    repository.publish()
    client.refresh()
    getattr(repository, role).version = 1
    repository.publish()
    client.refused("version")
    for stolen in ("timestamp", "snapshot", "targets"):
        repository.rotate_key(stolen)
    repository.publish()
    assert client.refresh().fetch_manifest(REF) == MANIFEST
    assert client.versions()[role] < 10


@pytest.mark.parametrize("name", ["root.json", "timestamp.json", "snapshot.json", "targets.json"])
@pytest.mark.parametrize("left", [b"", b"{", b"\x00" * 500], ids=["empty", "torn", "zeros"])
def test_local_metadata_torn_by_a_power_cut(client: Client, name: str, left: bytes) -> None:
    client.repository.publish()
    client.refresh().fetch_manifest(REF)
    path = client.folder / "tuf" / "cache" / name
    path.resolve().write_bytes(left)
    assert client.refresh().fetch_manifest(REF) == MANIFEST
    assert json.loads(path.read_bytes())["signed"]["_type"] == name.removesuffix(".json")


def test_a_root_put_into_the_cache_by_somebody_else_is_not_believed(client: Client) -> None:
    client.refresh()
    stranger = CryptoSigner.generate_ed25519()
    root = Root(version=7, expires=datetime.now(UTC).replace(microsecond=0) + timedelta(days=1))
    for role in root.roles:
        root.add_key(stranger.public_key, role)
    forged = Metadata(root)
    forged.sign(stranger)
    for path in [*(client.folder / "tuf" / "cache").rglob("*.json")]:
        if "root" in path.name:
            path.resolve().write_bytes(forged.to_bytes())
    assert client.refresh().fetch_manifest(REF) == MANIFEST
    assert client.versions()["root"] == 1
