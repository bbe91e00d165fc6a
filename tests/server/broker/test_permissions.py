"""The broker's table as text, and what happens when the broker is away, stuck or gone."""

import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from tests.fakes.nats_broker import running_broker
from tests.fakes.services import require

from covey_contract.errors import InvalidIdError
from covey_contract.ids import DeviceId
from covey_server.broker.binary import PACKAGE, check_version, find_binary
from covey_server.broker.embedded import broker_config
from covey_server.broker.external import DeviceList, permissions_of
from covey_server.broker.files import BrokerFiles
from covey_server.broker.mosquitto import mosquitto_config
from covey_server.broker.mosquitto_files import MosquittoFiles, rights_file
from covey_server.broker.permissions import NatsPermissions, users_file
from covey_server.devices.authority import KeyFiles
from covey_server.errors import InvalidInputError, UnavailableError
from covey_server.parts import BrokerRight
from covey_server.settings import BrokerSettings, Settings

FAR = datetime(2036, 1, 1, tzinfo=UTC)


def right(device: str, **changes: Any) -> BrokerRight:
    return replace(BrokerRight(DeviceId(device), device, "", FAR), **changes)


DEVICES = [right("cam-2"), right("cam-1")]


@pytest.fixture
def permissions(tmp_path: Path) -> NatsPermissions:
    return NatsPermissions(BrokerFiles(tmp_path / "broker"), reload_timeout_s=0.05)


def test_a_device_may_publish_and_read_its_own_and_nothing_else() -> None:
    line = next(line for line in users_file(DEVICES).splitlines() if 'user: "cam-1"' in line)
    assert 'publish: ["covey.v1.d.cam-1.up.>", "covey.v1.d.cam-1.status"]' in line
    assert 'subscribe: ["covey.v1.d.cam-1.down", "covey.v1.d.cam-1.down.>", "covey.v1.a", "covey.v1.a.>", "$MQTT.sub.>"]' in line
    assert 'allowed_connection_types: ["MQTT"]' in line


def test_each_certificate_in_force_is_a_user_of_its_own() -> None:
    old, new = right("cam-1", user="cam-1.0a", revoked_at=FAR), right("cam-1", user="cam-1.0b")
    table = users_file([old, new])
    assert '"cam-1.0b"' in table
    assert '"cam-1.0a"' not in table
    assert table.count("covey.v1.d.cam-1.up.>") == 1


@pytest.mark.parametrize("user", ["cam-2", "cam-1.", "cam-1.x", 'cam-1.0a"', "covey-server", "cam-1.0123456789abcdef0"])
def test_a_certificates_name_is_checked_before_it_becomes_configuration(user: str) -> None:
    with pytest.raises(InvalidInputError):
        users_file([right("cam-1", user=user)])


def test_the_table_is_the_same_for_the_same_devices() -> None:
    assert users_file(DEVICES) == users_file([*reversed(DEVICES), DEVICES[0]])


@pytest.mark.parametrize("device", ['x"}', "a b", "*", ">", "a.b", "cam-1\n", ""])
def test_nothing_but_ids_becomes_configuration(permissions: NatsPermissions, device: str) -> None:
    permissions.apply(DEVICES)
    with pytest.raises(InvalidIdError):
        permissions.apply([right(device)])
    assert permissions.files.users.read_text() == users_file(DEVICES)


def test_without_a_broker_the_table_waits_for_it(permissions: NatsPermissions) -> None:
    permissions.apply(DEVICES)
    assert permissions.files.users.read_text() == users_file(DEVICES)


@pytest.mark.parametrize("pid", ["", "nonsense", "999999999", "0x1"])
def test_a_pid_file_that_was_left_over_is_no_broker(permissions: NatsPermissions, pid: str) -> None:
    permissions.files.folder.mkdir()
    permissions.files.pid.write_text(pid)
    permissions.apply(DEVICES)


@pytest.fixture
def bystander() -> Iterator[subprocess.Popen[bytes]]:
    """A process that would end on SIGHUP."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield process
    process.kill()
    process.communicate()


def test_a_process_that_took_the_brokers_pid_is_left_alone(permissions: NatsPermissions, bystander: subprocess.Popen[bytes]) -> None:
    permissions.files.folder.mkdir()
    permissions.files.pid.write_text(str(bystander.pid))
    permissions.apply(DEVICES)
    assert bystander.poll() is None


def test_the_list_is_read_while_the_lock_is_held(permissions: NatsPermissions) -> None:
    """A list read before could undo what another process has applied in between."""

    def devices() -> Iterator[BrokerRight]:
        code = "import fcntl, sys; fcntl.flock(open(sys.argv[1], 'w'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
        tried = subprocess.run([sys.executable, "-S", "-c", code, str(permissions.files.lock)], capture_output=True, check=False)
        assert b"BlockingIOError" in tried.stderr
        yield DEVICES[0]

    permissions.apply(devices())
    assert permissions.files.users.read_text() == users_file(DEVICES[:1])


def _apply_many(folder: Path, prefix: str) -> None:
    permissions = NatsPermissions(BrokerFiles(folder))
    for count in range(1, 20):
        permissions.apply([right(f"{prefix}-{number}") for number in range(count)])


def test_processes_that_apply_at_once_leave_a_whole_table(tmp_path: Path) -> None:
    workers = [multiprocessing.Process(target=_apply_many, args=(tmp_path / "broker", prefix)) for prefix in ("api", "worker")]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(30)
    tables = {users_file([right(f"{prefix}-{number}") for number in range(19)]) for prefix in ("api", "worker")}
    assert (tmp_path / "broker" / "users.conf").read_text() in tables


@pytest.mark.broker
def test_a_broker_that_does_not_take_the_table_is_reported_and_asked_again(tmp_path: Path) -> None:
    require(_installed(), PACKAGE)
    with running_broker(tmp_path, devices=["cam-1"]) as broker:
        assert broker.process.popen is not None
        files = BrokerFiles.of(broker.settings)
        slow = NatsPermissions(files, reload_timeout_s=0.1)
        both = broker.table("cam-1", "cam-2")
        os.kill(broker.process.popen.pid, signal.SIGSTOP)
        try:
            with pytest.raises(UnavailableError):
                slow.apply(both)
        finally:
            os.kill(broker.process.popen.pid, signal.SIGCONT)
        assert slow.files.users.read_text() == users_file(both)  # a broker that restarts now finds a table
        broker.permissions.apply(both)
        broker.connect("cam-2")


@pytest.mark.broker
def test_the_pinned_binary_is_the_upstream_broker() -> None:
    require(_installed(), PACKAGE)
    binary = find_binary(BrokerSettings())
    assert check_version(binary) == "2.15.1"
    data = binary.read_bytes()
    assert b"mod\tgithub.com/nats-io/nats-server/v2\tv2.15.1" in data  # Go's build information


def _installed() -> bool:
    try:
        return find_binary(BrokerSettings()).exists()
    except UnavailableError:
        return False


@pytest.mark.parametrize("says", ["nats-server: v2.9.10", "nats-server: v2.14.2", "mosquitto version 2.0.11", ""])
def test_an_old_or_foreign_binary_is_refused(tmp_path: Path, says: str) -> None:
    binary = tmp_path / "nats-server"
    binary.write_text(f"#!/bin/sh\necho '{says}'\n")
    binary.chmod(0o755)
    with pytest.raises(InvalidInputError):
        check_version(find_binary(BrokerSettings(nats_server=str(binary))))


def test_a_binary_that_does_not_exist_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="no program"):
        find_binary(BrokerSettings(nats_server="/nowhere/nats-server"))


def test_the_configuration_asks_every_listener_for_certificates_and_opens_no_monitoring(tmp_path: Path) -> None:
    settings = Settings(work_dir=tmp_path / 'a "quoted" folder')
    files = BrokerFiles.of(settings)
    keys = KeyFiles(tmp_path / "c.crt", tmp_path / "c.key", tmp_path / "ca.crt")
    text = broker_config(settings, files=files, keys=keys, version="2.15.1")
    assert text.count("verify_and_map: true") == 2
    assert 'listen: "127.0.0.1:-1"' in text
    assert 'listen: "127.0.0.1:8883"' in text
    for never in ("no_auth_user", "http:", "http_port", "https:", "monitor_port", "websocket", "leafnodes"):
        assert never not in text
    assert f"max_payload: {128 * 1024 + 4096}" in text


def test_a_table_that_was_written_and_not_taken_is_applied_again(permissions: NatsPermissions) -> None:
    permissions.apply(DEVICES)
    permissions.files.pending.touch()  # as kill -9 between writing and reloading leaves it
    permissions.apply(DEVICES)
    assert not permissions.files.pending.exists()


def test_an_external_broker_gets_a_list(tmp_path: Path) -> None:
    settings = Settings(work_dir=tmp_path, broker=BrokerSettings(kind="external"))
    permissions = permissions_of(settings)
    assert isinstance(permissions, DeviceList)
    permissions.apply(DEVICES)
    assert settings.path("broker", "devices.txt").read_text() == "cam-1\ncam-2\n"
    assert isinstance(permissions_of(Settings(work_dir=tmp_path)), NatsPermissions)


@pytest.mark.parametrize("folder", ["with space", "x" * 100])
def test_a_folder_that_mosquitto_cannot_use_is_refused_in_words(tmp_path: Path, folder: str) -> None:
    settings = Settings(work_dir=tmp_path / folder, broker=BrokerSettings(kind="mosquitto"))
    keys = KeyFiles(tmp_path / "c.crt", tmp_path / "c.key", tmp_path / "ca.crt")
    with pytest.raises(InvalidInputError, match=r"path"):
        mosquitto_config(settings, files=MosquittoFiles.of(settings), keys=keys)


def test_mosquittos_rights_deny_whoever_is_gone_and_are_patterns_for_all_others() -> None:
    text = rights_file(["cam-9", "cam-9"])
    assert text.count("user cam-9\ntopic deny covey/v1/#") == 1
    assert "pattern write covey/v1/d/%u/up/#" in text
    assert "user covey-server\ntopic readwrite covey/v1/#" in text
