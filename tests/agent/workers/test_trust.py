"""What a device believes: every lie that a broker or a stolen online key can tell is refused, and a lost network is not a lie."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest
from tests.fakes.tuf_repository import Director, TufRepository, unreachable

from covey_agent.workers.errors import NetworkError, StorageError, UntrustedError
from covey_agent.workers.link import PartSource
from covey_agent.workers.trust import TrustedMetadata
from covey_contract.codec import digest_of
from covey_contract.limits import METADATA_PART_BYTES
from covey_contract.messages import Desired, InviteToRun, MetadataPart, PrivacyPlan, ReleaseRef, Signed, StopRun

NOW = datetime(2026, 11, 23, tzinfo=UTC)
MANIFEST = b'{"a manifest": "of many parts"}' * 5000  # 155 kB: three parts
BUNDLE = b"def build_model(): ..."


@pytest.fixture
def director() -> Director:
    return Director()


@pytest.fixture
def repository(director: Director) -> TufRepository:
    made = TufRepository()
    made.add_target("director.json", director.public_document())
    made.add_target("releases/tiny/1.json", MANIFEST)
    made.add_target(f"tasks/digits/{digest_of(BUNDLE)}.py", BUNDLE)
    made.publish()
    return made


def trusted(repository: TufRepository, state_dir: Path, *, fetch: PartSource | None = None) -> TrustedMetadata:
    return TrustedMetadata(repository.enrol(state_dir), fetch or repository.fetch_part)


def refreshed(repository: TufRepository, state_dir: Path) -> TrustedMetadata:
    made = trusted(repository, state_dir)
    made.refresh()
    return made


def ref(manifest: bytes = MANIFEST) -> ReleaseRef:
    return ReleaseRef(model="tiny", version=1, manifest=digest_of(manifest))


def desired(*, device: str = "pi-1", generation: int = 5) -> Desired:
    return Desired(device=device, generation=generation, issued_at=1, release=ref())


# -- what is right is believed -----------------------------------------------------------------------------------------


def test_a_manifest_of_several_parts_arrives_whole(repository: TufRepository, tmp_path: Path) -> None:
    assert refreshed(repository, tmp_path).fetch_manifest(ref()) == MANIFEST
    name = f"targets/releases/tiny/{digest_of(MANIFEST)}.1.json"
    assert [part for asked, part in repository.asked if asked == name] == [0, 1, 2]


def test_a_task_bundle_is_bound_to_its_digest(repository: TufRepository, tmp_path: Path) -> None:
    assert refreshed(repository, tmp_path).fetch_task("digits", digest_of(BUNDLE)) == BUNDLE


def test_an_order_of_the_director_is_returned(repository: TufRepository, director: Director, tmp_path: Path) -> None:
    order = desired()
    assert refreshed(repository, tmp_path).verify_order(director.sign(order), device="pi-1", now=NOW, min_generation=5) == order


def test_the_cache_spares_the_second_download(repository: TufRepository, tmp_path: Path) -> None:
    refreshed(repository, tmp_path).fetch_manifest(ref())
    repository.asked.clear()
    refreshed(repository, tmp_path).fetch_manifest(ref())
    assert {name for name, _ in repository.asked} == {"metadata/2.root.json", "metadata/timestamp.json"}


def test_a_rotated_key_is_followed_from_the_anchor(repository: TufRepository, tmp_path: Path) -> None:
    refreshed(repository, tmp_path)
    repository.rotate_timestamp_key()
    repository.publish()
    assert refreshed(repository, tmp_path).fetch_manifest(ref()) == MANIFEST


def test_a_garbled_cache_costs_a_download_and_no_trust(repository: TufRepository, tmp_path: Path) -> None:
    refreshed(repository, tmp_path).fetch_manifest(ref())
    for path in (tmp_path / "tuf").rglob("*"):
        if path.is_file() and not path.is_symlink() and path != tmp_path / "tuf" / "root.json":
            path.write_bytes(b"\x00" * 10)  # what a power cut leaves of a file that was not synced
    assert refreshed(repository, tmp_path).fetch_manifest(ref()) == MANIFEST


def test_cached_targets_are_bounded(repository: TufRepository, tmp_path: Path) -> None:
    for version in range(2, 20):
        repository.add_target(f"releases/tiny/{version}.json", b"%d" % version)
    repository.publish()
    client = refreshed(repository, tmp_path)
    for version in range(2, 20):
        client.fetch_manifest(ReleaseRef(model="tiny", version=version, manifest=digest_of(b"%d" % version)))
    assert len(list((tmp_path / "tuf" / "targets").iterdir())) <= 8


# -- metadata that lies ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets"])
def test_metadata_signed_by_another_key_is_refused(repository: TufRepository, tmp_path: Path, role: str) -> None:
    repository.forge(role)
    repository.publish()
    with pytest.raises(UntrustedError, match="cannot be trusted"):
        refreshed(repository, tmp_path)


def test_an_expired_timestamp_is_refused(tmp_path: Path) -> None:
    stale = TufRepository(expires=timedelta(seconds=-1))
    stale.publish()
    with pytest.raises(UntrustedError, match="expired"):
        refreshed(stale, tmp_path)


def test_an_older_timestamp_than_one_seen_is_refused(repository: TufRepository, tmp_path: Path) -> None:
    old = dict(repository.files)
    repository.publish()
    refreshed(repository, tmp_path)
    repository.files = old
    with pytest.raises(UntrustedError, match="version"):
        refreshed(repository, tmp_path)


def test_a_mix_of_old_targets_with_a_new_snapshot_is_refused(repository: TufRepository, tmp_path: Path) -> None:
    repository.publish()
    repository.files["metadata/2.targets.json"] = repository.files["metadata/1.targets.json"]
    with pytest.raises(UntrustedError, match="v1"):
        refreshed(repository, tmp_path)


@pytest.mark.parametrize("cut", [0, 1, 100])
def test_truncated_metadata_is_refused(repository: TufRepository, tmp_path: Path, cut: int) -> None:
    repository.files["metadata/1.snapshot.json"] = repository.files["metadata/1.snapshot.json"][:cut]
    with pytest.raises(UntrustedError):
        refreshed(repository, tmp_path)


def test_metadata_longer_than_its_bound_stops_being_read(repository: TufRepository, tmp_path: Path) -> None:
    repository.files["metadata/timestamp.json"] += b" " * 10 * METADATA_PART_BYTES
    with pytest.raises(UntrustedError, match="exceeding"):
        refreshed(repository, tmp_path)
    assert [part for name, part in repository.asked if name == "metadata/timestamp.json"] == [0]


def test_a_server_that_never_ends_is_left(repository: TufRepository, tmp_path: Path) -> None:
    def endless(name: str, part: int) -> MetadataPart:
        return MetadataPart(id="x", part=part, parts=10**9, data=b"x")

    with pytest.raises(UntrustedError, match="parts"):
        trusted(repository, tmp_path, fetch=endless).refresh()


def test_empty_parts_do_not_keep_a_device_asking(repository: TufRepository, tmp_path: Path) -> None:
    def drip(name: str, part: int) -> MetadataPart:
        return MetadataPart(id="x", part=part, parts=70, data=b"" if part else b"x")

    with pytest.raises(UntrustedError, match="0 bytes"):
        trusted(repository, tmp_path, fetch=drip).refresh()


# -- targets that lie --------------------------------------------------------------------------------------------------


def corrupt(repository: TufRepository, data: bytes) -> None:
    repository.files[f"targets/releases/tiny/{digest_of(MANIFEST)}.1.json"] = data


@pytest.mark.parametrize("data", [MANIFEST[:-1], MANIFEST[:-1] + b"!", MANIFEST + b"!"], ids=["truncated", "changed", "too long"])
def test_a_manifest_that_tuf_does_not_list_so_is_refused(repository: TufRepository, tmp_path: Path, data: bytes) -> None:
    corrupt(repository, data)
    with pytest.raises(UntrustedError):
        refreshed(repository, tmp_path).fetch_manifest(ref())


def test_a_manifest_that_is_listed_but_not_the_ordered_one_is_refused(repository: TufRepository, tmp_path: Path) -> None:
    with pytest.raises(UntrustedError, match="the order names"):
        refreshed(repository, tmp_path).fetch_manifest(ref(b"another"))


def test_a_release_that_tuf_does_not_list_is_refused(repository: TufRepository, tmp_path: Path) -> None:
    with pytest.raises(UntrustedError, match="not among"):
        refreshed(repository, tmp_path).fetch_manifest(ReleaseRef(model="tiny", version=2, manifest="0" * 64))


def test_a_task_of_another_digest_is_refused(repository: TufRepository, tmp_path: Path) -> None:
    repository.add_target(f"tasks/digits/{'0' * 64}.py", BUNDLE)  # even if somebody lists it under a name that is not its digest
    repository.publish()
    with pytest.raises(UntrustedError, match="has digest"):
        refreshed(repository, tmp_path).fetch_task("digits", "0" * 64)


# -- orders that lie ---------------------------------------------------------------------------------------------------


def flip(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


def test_a_changed_order_is_refused(repository: TufRepository, director: Director, tmp_path: Path) -> None:
    signed = director.sign(desired())
    forged = msgspec.structs.replace(signed, payload=signed.payload.replace(b'"generation":5', b'"generation":6'))
    assert forged != signed
    with pytest.raises(UntrustedError, match="signature"):
        refreshed(repository, tmp_path).verify_order(forged, device="pi-1", now=NOW)


def test_a_changed_signature_is_refused(repository: TufRepository, director: Director, tmp_path: Path) -> None:
    signed = director.sign(desired())
    for signature in (flip(signed.signature), b"", signed.signature * 2):
        with pytest.raises(UntrustedError, match="signature"):
            refreshed(repository, tmp_path).verify_order(msgspec.structs.replace(signed, signature=signature), device="pi-1", now=NOW)


def test_an_order_by_a_key_that_tuf_does_not_name_is_refused(repository: TufRepository, tmp_path: Path) -> None:
    with pytest.raises(UntrustedError, match="does not name"):
        refreshed(repository, tmp_path).verify_order(Director().sign(desired()), device="pi-1", now=NOW)


def test_a_key_listed_under_another_keys_id_counts_for_nothing(repository: TufRepository, director: Director, tmp_path: Path) -> None:
    thief = Director()
    repository.add_target("director.json", thief.public_document().replace(thief.keyid.encode(), director.keyid.encode()))
    repository.publish()
    signed = msgspec.structs.replace(thief.sign(desired()), keyid=director.keyid)
    with pytest.raises(UntrustedError, match="does not name"):
        refreshed(repository, tmp_path).verify_order(signed, device="pi-1", now=NOW)


def test_an_order_for_another_device_is_refused(repository: TufRepository, director: Director, tmp_path: Path) -> None:
    with pytest.raises(UntrustedError, match="for device pi-2"):
        refreshed(repository, tmp_path).verify_order(director.sign(desired(device="pi-2")), device="pi-1", now=NOW)


def test_an_older_generation_is_refused(repository: TufRepository, director: Director, tmp_path: Path) -> None:
    with pytest.raises(UntrustedError, match="generation 5"):
        refreshed(repository, tmp_path).verify_order(director.sign(desired()), device="pi-1", now=NOW, min_generation=6)


@pytest.mark.parametrize("late_ms", [0, 1])
def test_an_expired_command_is_refused(repository: TufRepository, director: Director, tmp_path: Path, late_ms: int) -> None:
    stop = StopRun(id="c1", device="pi-1", expires_at=int(NOW.timestamp() * 1000) - late_ms, run="r1")
    with pytest.raises(UntrustedError, match="expired"):
        refreshed(repository, tmp_path).verify_order(director.sign(stop), device="pi-1", now=NOW)


def test_an_invitation_that_still_holds_is_returned(repository: TufRepository, director: Director, tmp_path: Path) -> None:
    invitation = InviteToRun(
        id="c1", device="pi-1", expires_at=int(NOW.timestamp() * 1000) + 1, run="r1", task="digits", task_digest=digest_of(BUNDLE),
        purpose="demo", dataset="digits", rounds=3, plan=PrivacyPlan("none", 0.0, 0.0, 0.0, 0, 0.0), fleet_api="edge:9092",
    )  # fmt: skip
    assert refreshed(repository, tmp_path).verify_order(director.sign(invitation), device="pi-1", now=NOW) == invitation


def test_signed_nonsense_is_refused(repository: TufRepository, director: Director, tmp_path: Path) -> None:
    signed = director.sign(desired())
    nonsense = Signed(payload=b'{"type":"format_disk"}', keyid=signed.keyid, signature=director._key.sign(b'{"type":"format_disk"}'))
    with pytest.raises(UntrustedError, match="not one that this agent knows"):
        refreshed(repository, tmp_path).verify_order(nonsense, device="pi-1", now=NOW)


# -- faults that are not lies ------------------------------------------------------------------------------------------


def test_no_network_may_be_tried_again(repository: TufRepository, tmp_path: Path) -> None:
    with pytest.raises(NetworkError):
        trusted(repository, tmp_path, fetch=unreachable).refresh()


def test_a_file_that_the_server_does_not_hold_may_be_tried_again(repository: TufRepository, tmp_path: Path) -> None:
    del repository.files["metadata/1.snapshot.json"]
    with pytest.raises(NetworkError, match=r"1\.snapshot\.json"):
        refreshed(repository, tmp_path)


def test_a_missing_anchor_is_a_fault_of_the_disk(repository: TufRepository, tmp_path: Path) -> None:
    with pytest.raises(StorageError):
        TrustedMetadata(tmp_path, repository.fetch_part)


def test_an_anchor_that_is_no_root_is_refused(repository: TufRepository, tmp_path: Path) -> None:
    (repository.enrol(tmp_path) / "tuf" / "root.json").write_bytes(repository.files["metadata/timestamp.json"])
    with pytest.raises(UntrustedError, match="anchor"):
        TrustedMetadata(tmp_path, repository.fetch_part)
