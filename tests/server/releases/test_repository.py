"""The TUF repository, judged by python-tuf's own client."""

import multiprocessing
import os
import signal
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path
from unittest import mock

import pytest
from tests.server.releases.tuf_device import TufDevice
from tuf.api.exceptions import BadVersionNumberError, ExpiredMetadataError, RepositoryError

from covey_contract.errors import InvalidIdError
from covey_server.errors import ConflictError, NotFoundError, UnavailableError
from covey_server.releases import repository as repository_module
from covey_server.releases.files import write_atomic
from covey_server.releases.keys import make_key, offline_key_path, online_key_path
from covey_server.releases.repository import TufRepository
from covey_server.settings import Settings

NOW = datetime.now(UTC)  # python-tuf's client compares expiry with the machine's clock


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(work_dir=tmp_path / "work")


@pytest.fixture
def repository(settings: Settings) -> TufRepository:
    return TufRepository.create(settings, NOW)


@pytest.fixture
def device(tmp_path: Path, repository: TufRepository) -> TufDevice:
    return TufDevice(tmp_path / "device", repository)


def test_a_device_fetches_a_target_that_was_added(repository: TufRepository, device: TufDevice) -> None:
    repository.add_target("releases/digits/1.json", b"manifest 1")
    assert device.fetch("releases/digits/1.json") == b"manifest 1"
    assert device.fetch("releases/digits/2.json") is None


def test_many_releases_stay_verifiable_and_old_metadata_is_pruned(repository: TufRepository, device: TufDevice, tmp_path: Path) -> None:
    for version in range(1, 61):
        repository.add_target(f"releases/digits/{version}.json", b"manifest %d" % version)
        if version % 20 == 0:
            assert device.fetch(f"releases/digits/{version}.json") == b"manifest %d" % version
    assert device.fetch("releases/digits/1.json") == b"manifest 1"
    assert len(list((tmp_path / "work/tuf/metadata").glob("*.targets.json"))) == 50


def test_a_replaced_target_gives_the_new_bytes(repository: TufRepository, device: TufDevice) -> None:
    repository.add_target("director.json", b"old")
    assert device.fetch("director.json") == b"old"
    repository.add_target("director.json", b"new")
    assert device.fetch("director.json") == b"new"


def test_the_same_bytes_again_change_nothing(repository: TufRepository) -> None:
    repository.add_target("director.json", b"same")
    before = repository.read_file("metadata/timestamp.json")
    repository.add_target("director.json", b"same")
    assert repository.read_file("metadata/timestamp.json") == before


def test_a_removed_target_is_listed_no_more(repository: TufRepository, device: TufDevice) -> None:
    repository.add_target("releases/digits/1.json", b"manifest")
    repository.remove_target("releases/digits/1.json")
    assert device.fetch("releases/digits/1.json") is None
    with pytest.raises(NotFoundError):
        repository.remove_target("releases/digits/1.json")


def test_keys_are_readable_by_their_owner_only(repository: TufRepository, settings: Settings) -> None:
    files = [offline_key_path(settings), *(online_key_path(settings, role) for role in ("targets", "snapshot", "timestamp"))]
    assert [stat.S_IMODE(file.stat().st_mode) for file in files] == [0o600] * 4
    assert stat.S_IMODE(files[0].parent.stat().st_mode) == 0o700


def test_the_offline_key_is_not_needed_to_publish(repository: TufRepository, settings: Settings, device: TufDevice) -> None:
    offline_key_path(settings).unlink()
    repository.add_target("releases/digits/1.json", b"manifest")
    repository.refresh(NOW + timedelta(days=60))
    assert device.fetch("releases/digits/1.json") == b"manifest"


def test_create_twice_is_refused(repository: TufRepository, settings: Settings) -> None:
    with pytest.raises(ConflictError):
        TufRepository.create(settings, NOW)


def test_a_missing_repository_says_what_to_do(settings: Settings) -> None:
    with pytest.raises(UnavailableError, match="covey init"):
        TufRepository(settings).add_target("director.json", b"x")
    with pytest.raises(UnavailableError, match="covey init"):
        TufRepository(settings).newest_root()


@pytest.mark.parametrize(
    "path",
    [
        "../x.json",
        "/director.json",
        "a//b.json",
        "a/../b.json",
        ".hidden.json",
        "a/b/c/d.json",
        "x.exe",
        "",
        "a/b.json\n",
        "a" * 70 + ".json",
    ],
)
def test_a_bad_target_path_is_refused(repository: TufRepository, path: str) -> None:
    with pytest.raises(InvalidIdError):
        repository.add_target(path, b"x")


@pytest.mark.parametrize(
    "name",
    [
        "metadata/../../keys/offline/root.pem",
        "targets/../../keys/online/targets.pem",
        "metadata/../metadata/timestamp.json",
        "metadata//timestamp.json",
        "metadata/root.json",
        "metadata/0.root.json",
        "metadata/1.root.json\n",
        "metadata/999999999.root.json",
        "metadata/.lock",
        "metadata/",
        "targets/director.json",
        "targets/",
        "keys/offline/root.pem",
        "/etc/passwd",
        "",
    ],
)
def test_a_name_that_is_not_a_repository_file_gives_nothing(repository: TufRepository, name: str) -> None:
    repository.add_target("director.json", b"x")
    assert repository.read_file(name) is None


def test_refresh_renews_only_what_is_past_half_of_its_time(repository: TufRepository) -> None:
    before = repository.expiries()
    repository.refresh(NOW + timedelta(hours=11))
    assert repository.expiries() == before
    repository.refresh(NOW + timedelta(hours=13))
    after = repository.expiries()
    assert after["timestamp"] > before["timestamp"]
    assert after["targets"] == before["targets"]
    repository.refresh(NOW + timedelta(days=46))
    assert repository.expiries()["targets"] > before["targets"]


def test_a_device_refuses_expired_metadata_until_it_is_refreshed(settings: Settings, tmp_path: Path) -> None:
    repository = TufRepository.create(settings, NOW - timedelta(days=2))
    device = TufDevice(tmp_path / "device", repository)
    with pytest.raises(ExpiredMetadataError):
        device.fetch("director.json")
    repository.refresh(NOW)
    assert device.fetch("director.json") is None


def test_a_device_refuses_a_repository_that_went_back(settings: Settings, repository: TufRepository, device: TufDevice) -> None:
    old = repository.read_file("metadata/timestamp.json")
    assert old is not None
    repository.add_target("director.json", b"x")
    assert device.fetch("director.json") == b"x"
    settings.path("tuf", "metadata", "timestamp.json").write_bytes(old)
    with pytest.raises(BadVersionNumberError):
        device.fetch("director.json")


def test_a_device_refuses_metadata_by_another_key(repository: TufRepository, settings: Settings, device: TufDevice) -> None:
    make_key(online_key_path(settings, "targets"))
    repository.add_target("director.json", b"x")
    with pytest.raises(RepositoryError):
        device.fetch("director.json")


def add_and_die(work_dir: Path, write_to_die_at: int) -> None:
    """Add a target and be killed, without a chance to clean up, at one of the writes."""
    writes = 0

    def write(path: Path, data: bytes, *, mode: int = 0o644) -> None:
        nonlocal writes
        writes += 1
        if writes == write_to_die_at:
            path.with_name(f".{path.name}.half.part").write_bytes(data[: len(data) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        write_atomic(path, data, mode=mode)

    # A kill -9 at an exact place cannot be had from outside; what dies here is this forked process.
    mock.patch.object(repository_module, "write_atomic", write).start()
    TufRepository(Settings(work_dir=work_dir)).add_target("releases/digits/2.json", b"manifest 2")


@pytest.mark.parametrize("write_to_die_at", [1, 2, 3, 4])
def test_a_process_killed_while_adding_leaves_the_old_repository(
    repository: TufRepository, device: TufDevice, tmp_path: Path, write_to_die_at: int
) -> None:
    repository.add_target("releases/digits/1.json", b"manifest 1")
    process = multiprocessing.get_context("fork").Process(target=add_and_die, args=(tmp_path / "work", write_to_die_at))
    process.start()
    process.join(30)
    assert process.exitcode == -signal.SIGKILL
    assert device.fetch("releases/digits/1.json") == b"manifest 1"
    assert device.fetch("releases/digits/2.json") is None
    repository.add_target("releases/digits/3.json", b"manifest 3")
    assert device.fetch("releases/digits/3.json") == b"manifest 3"


def add_many(work_dir: Path, model: str) -> None:
    repository = TufRepository(Settings(work_dir=work_dir))
    for version in range(1, 11):
        repository.add_target(f"releases/{model}/{version}.json", model.encode())


def test_two_processes_adding_at_once_lose_nothing(repository: TufRepository, device: TufDevice, tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=add_many, args=(tmp_path / "work", model)) for model in ("left", "right")]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    expected = {f"releases/{model}/{version}.json" for model in ("left", "right") for version in range(1, 11)}
    assert set(repository.list_targets()) == expected
    assert device.fetch("releases/left/10.json") == b"left"
    assert device.fetch("releases/right/10.json") == b"right"
