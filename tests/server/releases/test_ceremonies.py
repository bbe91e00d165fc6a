"""Key ceremonies by the `covey keys` command on a real work folder, judged by python-tuf's own client on a device."""

import json
import shutil
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlmodel import select
from tests.fakes.server_parts import add_device
from tests.fakes.services import require
from tests.server.releases.tuf_device import TufDevice
from tuf.api.exceptions import BadVersionNumberError, RepositoryError
from tuf.api.metadata import Metadata, Root
from typer.testing import CliRunner

from covey_contract.codec import decode, encode
from covey_contract.messages import Desired, Signed
from covey_server import migrate
from covey_server.cli import keys
from covey_server.clock import utc_now
from covey_server.db import Database
from covey_server.errors import CoveyServerError, UnavailableError
from covey_server.releases import signers
from covey_server.releases.director import FileDirector
from covey_server.releases.keys import is_encrypted, offline_key_path, online_key_path
from covey_server.releases.repository import TufRepository
from covey_server.rollouts.desired import republish_desired
from covey_server.rollouts.models import DesiredState
from covey_server.settings import KeysSettings, Settings

SOFTHSM = next((path for path in map(Path, ("/usr/lib/softhsm/libsofthsm2.so", "/usr/lib64/libsofthsm2.so")) if path.exists()), None)


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    settings = Settings(work_dir=tmp_path / "work")
    FileDirector.create(settings, TufRepository.create(settings, datetime.now(UTC) - timedelta(days=1)))
    monkeypatch.setenv("COVEY_HOME", str(settings.work_dir))
    return settings


@pytest.fixture
def device(settings: Settings, tmp_path: Path) -> TufDevice:
    device = TufDevice(tmp_path / "device", TufRepository(settings))
    assert device.fetch("director.json")
    return device


def run(*arguments: object, code: int = 0, **more: Any) -> str:
    result = CliRunner().invoke(keys.app, [str(argument) for argument in arguments], **more)
    if code == 0 and result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code or (code and result.exception is not None), result.output
    return result.stdout


def ask(*arguments: object) -> Any:
    return json.loads(run(*arguments, "--json"))


def holder(folder: Path, name: str) -> Path:
    run("make", folder / name, "--plain")
    return folder / name


def root_of(settings: Settings) -> Root:
    return Metadata[Root].from_bytes(TufRepository(settings).newest_root()).signed


def two_of_three(settings: Settings, folder: Path) -> list[Path]:
    """Root is held by three people, two of whom must sign; the key of `covey init` is out."""
    holders = [holder(folder, name) for name in ("ann", "ben", "eve")]
    first = root_of(settings).roles["root"].keyids[0]
    run("draft", folder / "r2", *(word for path in holders for word in ("--add", f"{path}.pub")), "--remove", first[:8], "--threshold", 2)
    for key in (offline_key_path(settings), *holders[:2]):
        run("sign", folder / "r2", "--key", key, "--yes")
    run("publish", folder / "r2")
    return holders


def test_three_holders_of_whom_two_must_sign(settings: Settings, device: TufDevice, tmp_path: Path) -> None:
    ann, ben, eve = two_of_three(settings, tmp_path)
    assert (root_of(settings).version, root_of(settings).roles["root"].threshold) == (2, 2)
    TufRepository(settings).add_target("x.json", b"1")
    assert device.fetch("x.json") == b"1"
    run("draft", tmp_path / "r3")
    told = ask("sign", tmp_path / "r3", "--key", eve, "--yes")
    assert (told["complete"], told["signatures"]["own"]["missing"]) == (False, 1)
    with pytest.raises(CoveyServerError, match="1 more signatures by keys of the present root are missing"):
        run("publish", tmp_path / "r3")
    run("sign", tmp_path / "r3", "--key", eve, "--yes")  # twice by one is not by two
    with pytest.raises(CoveyServerError, match="1 more signatures"):
        run("publish", tmp_path / "r3")
    assert ask("sign", tmp_path / "r3", "--key", ben, "--yes")["complete"]
    assert ask("publish", tmp_path / "r3") == {"version": 3}
    assert device.fetch("director.json")
    with pytest.raises(CoveyServerError, match="this is version 3 of root, expected 4"):
        run("publish", tmp_path / "r3")
    assert ann.exists()


def test_the_key_that_was_removed_changes_nothing_any_more(settings: Settings, device: TufDevice, tmp_path: Path) -> None:
    two_of_three(settings, tmp_path)
    run("draft", tmp_path / "r3")
    told = ask("sign", tmp_path / "r3", "--key", offline_key_path(settings), "--yes")
    assert told["signatures"]["own"]["signed"] == []
    with pytest.raises(CoveyServerError, match="2 more signatures"):
        run("publish", tmp_path / "r3")
    assert device.fetch("director.json")


def test_a_root_that_nobody_could_ever_change_again_is_refused(settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(CoveyServerError, match="would need 2 signatures and have 1 keys"):
        run("draft", tmp_path / "r2", "--threshold", 2)
    with pytest.raises(CoveyServerError, match="must be the beginning of one of root's keys"):
        run("draft", tmp_path / "r2", "--remove", "zz")
    assert not (tmp_path / "r2").exists()


def test_a_draft_that_was_changed_after_it_was_signed_counts_for_nothing(settings: Settings, tmp_path: Path) -> None:
    run("draft", tmp_path / "r2")
    run("sign", tmp_path / "r2", "--key", offline_key_path(settings), "--yes")
    text = (tmp_path / "r2").read_text()
    (tmp_path / "r2").write_text(text.replace('"version":2', '"version":2,"x":1'))
    with pytest.raises(CoveyServerError, match="1 more signatures"):
        run("publish", tmp_path / "r2")
    (tmp_path / "r2").write_text("{}")
    with pytest.raises(CoveyServerError, match="no root metadata"):
        run("publish", tmp_path / "r2")


def test_a_holder_signs_on_a_machine_without_a_work_folder(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run("draft", tmp_path / "r2")
    monkeypatch.setenv("COVEY_HOME", str(tmp_path / "nowhere"))
    told = ask("inspect", tmp_path / "r2")
    assert (told["version"], told["complete"], "before" in told["signatures"]) == (2, False, False)
    run("sign", tmp_path / "r2", "--key", offline_key_path(settings), input="n\n", code=4)
    assert ask("inspect", tmp_path / "r2")["signatures"]["own"]["signed"] == []
    run("sign", tmp_path / "r2", "--key", offline_key_path(settings), "--yes")
    assert ask("inspect", tmp_path / "r2")["signatures"]["own"]["missing"] == 0


@pytest.mark.parametrize("roles", [["timestamp"], ["snapshot", "timestamp"], ["targets"], ["targets", "snapshot", "timestamp"]])
def test_online_keys_are_changed_and_devices_follow(settings: Settings, device: TufDevice, roles: list[str]) -> None:
    before = {role: root_of(settings).roles[role].keyids for role in roles}
    run("rotate", *roles)
    TufRepository(settings).add_target("x.json", b"meanwhile")  # the new keys only wait
    assert device.fetch("x.json") == b"meanwhile"
    run("renew-root")
    assert all(root_of(settings).roles[role].keyids != before[role] for role in roles)
    assert device.fetch("x.json") == b"meanwhile"
    TufRepository(settings).add_target("x.json", b"after")
    assert device.fetch("x.json") == b"after"


def test_a_change_of_keys_that_was_cut_off_is_finished_by_the_next_refresh(settings: Settings, device: TufDevice) -> None:
    run("rotate", "targets", "timestamp")
    waiting = {role: online_key_path(settings, f"{role}.next").read_bytes() for role in ("targets", "timestamp")}
    present = {role: online_key_path(settings, role).read_bytes() for role in waiting}
    metadata = {path: path.read_bytes() for path in settings.path("tuf", "metadata").iterdir()}
    run("renew-root")
    for path, data in metadata.items():  # power failed when root was written, and nothing else
        path.write_bytes(data)
    for role, data in waiting.items():
        online_key_path(settings, role).write_bytes(present[role])
        online_key_path(settings, f"{role}.next").write_bytes(data)
    with pytest.raises(RepositoryError):
        device.fetch("director.json")
    TufRepository(settings).refresh(utc_now())
    assert device.fetch("director.json")
    assert online_key_path(settings, "targets").read_bytes() == waiting["targets"]


def test_a_root_that_names_keys_which_this_server_lacks_is_refused(settings: Settings, tmp_path: Path) -> None:
    run("rotate", "targets")
    run("draft", tmp_path / "r2")
    run("sign", tmp_path / "r2", "--key", offline_key_path(settings), "--yes")
    online_key_path(settings, "targets.next").unlink()
    with pytest.raises(CoveyServerError, match="names other keys for targets than this server has"):
        run("publish", tmp_path / "r2")
    assert root_of(settings).version == 1


# -- after a restored backup -------------------------------------------------------------------------------------------


def test_a_server_restored_from_an_old_backup_is_believed_again(settings: Settings, device: TufDevice, tmp_path: Path) -> None:
    database = Database(settings.resolved_database_url)
    migrate.upgrade(database)
    database.close()
    shutil.copytree(settings.work_dir, tmp_path / "backup")
    for number in range(5):
        TufRepository(settings).add_target("x.json", b"%d" % number)
        assert device.fetch("x.json") == b"%d" % number
    shutil.rmtree(settings.work_dir)
    shutil.copytree(tmp_path / "backup", settings.work_dir)
    TufRepository(settings).add_target("x.json", b"after the backup")
    with pytest.raises(BadVersionNumberError):
        device.fetch("x.json")
    told = ask("recover")
    assert told["timestamp"] > keys.RAISE_BY
    assert told["devices"] == 0
    assert device.fetch("x.json") == b"after the backup"
    TufRepository(settings).add_target("x.json", b"and goes on")
    assert device.fetch("x.json") == b"and goes on"


def test_online_keys_that_were_lost_with_the_server_are_replaced_after_a_restore(
    settings: Settings, device: TufDevice, tmp_path: Path
) -> None:
    """The backup has root 1; devices follow root 3, whose online keys existed nowhere else."""
    migrated = Database(settings.resolved_database_url)
    migrate.upgrade(migrated)
    migrated.close()
    shutil.copytree(settings.work_dir, tmp_path / "backup")
    kept = []
    for version in (2, 3):
        run("rotate", "targets", "snapshot", "timestamp")
        run("renew-root")
        kept.append(tmp_path / f"{version}.root.json")
        kept[-1].write_bytes(TufRepository(settings).newest_root())
    assert device.fetch("director.json")
    shutil.rmtree(settings.work_dir)
    shutil.copytree(tmp_path / "backup", settings.work_dir)

    with pytest.raises(CoveyServerError, match="names other keys"):
        run("publish", kept[0])
    later = [word for path in kept for word in ("--after", path)]
    run("draft", tmp_path / "r4", *later)
    with pytest.raises(CoveyServerError, match="1 more signatures"):
        run("publish", tmp_path / "r4", *later)
    run("sign", tmp_path / "r4", "--key", offline_key_path(settings), "--yes")
    with pytest.raises(CoveyServerError, match="expected 2"):
        run("publish", tmp_path / "r4")
    assert root_of(settings).version == 1  # what was refused has changed nothing
    (settings.path("tuf", "metadata") / "2.root.json").write_bytes(kept[0].read_bytes())  # a first attempt was cut off here
    assert ask("publish", tmp_path / "r4", *later) == {"version": 4}
    ask("recover")
    TufRepository(settings).add_target("x.json", b"believed")
    assert device.fetch("x.json") == b"believed"


# -- encrypted keys ----------------------------------------------------------------------------------------------------


def encrypted(settings: Settings, tmp_path: Path) -> Settings:
    secret = tmp_path / "passphrase"
    secret.write_text("correct horse battery\n")
    (settings.work_dir / "covey.toml").write_text(f'[keys]\npassphrase_file = "{secret}"\n')
    return settings.model_copy(update={"keys": KeysSettings(passphrase_file=str(secret))})


def test_keys_are_encrypted_in_place_and_everything_goes_on(settings: Settings, device: TufDevice, tmp_path: Path) -> None:
    before = FileDirector.load(settings).keyid
    sealed = encrypted(settings, tmp_path)
    assert len(ask("encrypt")["encrypted"]) == 5
    assert ask("encrypt")["encrypted"] == []
    assert all(is_encrypted(path) for path in settings.path("keys").glob("*/*.pem"))
    TufRepository(sealed).add_target("x.json", b"1")
    assert device.fetch("x.json") == b"1"
    assert FileDirector.load(sealed).keyid == before
    assert {key["kept"] for key in ask("show")} == {"encrypted"}
    run("rotate", "targets")
    assert is_encrypted(online_key_path(settings, "targets.next"))
    run("renew-root")
    assert device.fetch("x.json") == b"1"


def test_without_the_passphrase_nothing_is_signed_and_the_error_says_what_to_do(settings: Settings, tmp_path: Path) -> None:
    sealed = encrypted(settings, tmp_path)
    run("encrypt")
    with pytest.raises(UnavailableError, match=r"is encrypted: name the file with its passphrase in keys\.passphrase_file"):
        TufRepository(settings).add_target("x.json", b"1")
    Path(sealed.keys.passphrase_file).write_text("another one\n")
    with pytest.raises(UnavailableError, match="the passphrase is wrong"):
        TufRepository(sealed).add_target("x.json", b"1")
    Path(sealed.keys.passphrase_file).write_text("\n")
    with pytest.raises(UnavailableError, match="is empty"):
        FileDirector.load(sealed)


def test_a_new_server_makes_its_keys_encrypted(tmp_path: Path) -> None:
    (tmp_path / "passphrase").write_text("correct horse battery\n")
    sealed = Settings(work_dir=tmp_path / "work", keys=KeysSettings(passphrase_file=str(tmp_path / "passphrase")))
    FileDirector.create(sealed, TufRepository.create(sealed, utc_now()))
    assert all(is_encrypted(path) for path in sealed.path("keys").glob("*/*.pem"))


def test_a_holders_key_is_encrypted_and_asks(settings: Settings, tmp_path: Path) -> None:
    run("make", tmp_path / "ann", input="short\nshort\n", code=2)
    run("make", tmp_path / "ann", input="correct horse battery\n" * 2)
    assert is_encrypted(tmp_path / "ann")
    assert (tmp_path / "ann").stat().st_mode & 0o777 == 0o600
    run("make", tmp_path / "ann", "--plain", code=4)
    run("draft", tmp_path / "r2", "--add", tmp_path / "ann.pub")
    run("sign", tmp_path / "r2", "--key", tmp_path / "ann", "--yes", input="correct horse battery\n")
    assert len(ask("inspect", tmp_path / "r2")["signatures"]["own"]["signed"]) == 1


# -- the director ------------------------------------------------------------------------------------------------------


def test_the_directors_key_is_changed_and_orders_are_signed_anew(settings: Settings, tmp_path: Path) -> None:
    database = Database(settings.resolved_database_url)
    migrate.upgrade(database)
    before = FileDirector.load(settings)
    order = Desired(device="cam-1", generation=3, issued_at=1)
    with database.begin() as session:
        add_device(session, "cam-1")
        session.add(DesiredState(device_id="cam-1", generation=3, signed=encode(before.sign(encode(order)))))
    run("rotate-director")
    after = FileDirector.load(settings)
    assert set(json.loads(after.target())["keys"]) == {before.keyid, after.keyid}
    run("rotate-director", code=1)
    run("rotate-director", "--finish", code=4)  # an order by the key before has not been signed anew
    with database.begin() as session:
        assert republish_desired(session, after) == 1
    with database.read() as session:
        signed = decode(session.exec(select(DesiredState)).one().signed, Signed)
    assert (signed.keyid, decode(signed.payload, Desired)) == (after.keyid, order)
    assert ask("rotate-director", "--finish") == {"keyid": after.keyid, "finished": True}
    assert set(json.loads(FileDirector.load(settings).target())["keys"]) == {after.keyid}
    database.close()


def test_a_rotation_of_the_director_that_was_cut_off_is_finished(settings: Settings) -> None:
    after = FileDirector.rotate(settings, TufRepository(settings))
    online_key_path(settings, "director").rename(online_key_path(settings, "director.next"))  # between the two renames
    assert FileDirector.load(settings).keyid == after.keyid


# -- keys on a token ---------------------------------------------------------------------------------------------------


@pytest.fixture
def token(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """A token in software with two keys on it, and settings that name it."""
    require(SOFTHSM and shutil.which("softhsm2-util") and shutil.which("pkcs11-tool"), "softhsm2 and opensc")
    (tmp_path / "tokens").mkdir()
    (tmp_path / "softhsm2.conf").write_text(f"directories.tokendir = {tmp_path / 'tokens'}\nobjectstore.backend = file\n")
    monkeypatch.setenv("SOFTHSM2_CONF", str(tmp_path / "softhsm2.conf"))
    init = ["softhsm2-util", "--init-token", "--free", "--label", "covey", "--pin", "123456", "--so-pin", "654321"]
    subprocess.run(init, check=True, capture_output=True)
    for number in ("02", "03"):
        command = ["pkcs11-tool", "--module", str(SOFTHSM), "--token-label", "covey", "--login", "--pin", "123456", "--keypairgen"]
        command += ["--key-type", "EC:prime256v1", "--id", number, "--label", f"key-{number}"]
        subprocess.run(command, check=True, capture_output=True)
    (tmp_path / "pin").write_text("123456\n")
    (settings.work_dir / "covey.toml").write_text(f'[keys]\npkcs11_module = "{SOFTHSM}"\npkcs11_pin_file = "{tmp_path / "pin"}"\n')
    return settings.model_copy(update={"keys": KeysSettings(pkcs11_module=str(SOFTHSM), pkcs11_pin_file=str(tmp_path / "pin"))})


def test_a_role_is_signed_by_a_key_on_a_token_that_never_leaves_it(token: Settings, device: TufDevice, tmp_path: Path) -> None:
    run("rotate", "targets", "--token-key", 2, "--token-label", "covey")
    run("renew-root")
    assert not online_key_path(token, "targets").exists()
    TufRepository(token).add_target("x.json", b"signed on the token")
    assert device.fetch("x.json") == b"signed on the token"
    shown = {key["role"]: key for key in ask("show")}
    assert (shown["targets"]["kept"], shown["targets"]["file"]) == ("on a token", "hsm:2?label=covey")
    (tmp_path / "pin").write_text("000000\n")
    with pytest.raises(CoveyServerError, match="the token"):
        TufRepository(token).add_target("x.json", b"2")
    assert device.fetch("x.json") == b"signed on the token"


def test_a_holder_signs_root_by_a_key_on_a_token(token: Settings, device: TufDevice, tmp_path: Path) -> None:
    key = signers.take_next_from_token(token, "scratch", number=3, label="covey")
    signers.write_public(tmp_path / "ann.pub", key)
    run("draft", tmp_path / "r2", "--add", tmp_path / "ann.pub")
    run("sign", tmp_path / "r2", "--key", offline_key_path(token), "--yes")
    run("publish", tmp_path / "r2")
    run("draft", tmp_path / "r3")
    run("sign", tmp_path / "r3", "--token", "hsm:3?label=covey", "--public", tmp_path / "ann.pub", "--yes")
    run("publish", tmp_path / "r3")
    assert root_of(token).version == 3
    assert device.fetch("director.json")


def test_a_token_that_is_not_there_is_named(settings: Settings) -> None:
    with pytest.raises(UnavailableError, match=r"keys\.pkcs11_module must name"):
        run("rotate", "targets", "--token-key", 2)
