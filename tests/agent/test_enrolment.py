"""Enrolment against a real TLS listener: everything or nothing, and a clear word for each way it can go wrong."""

import base64
import json
import shutil
import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from tests.fakes.agent.edge import Authority, EnrolmentEdge

from covey_agent.adapters.lock import StateLock
from covey_agent.cli import main
from covey_agent.identity import load_identity

pytestmark = pytest.mark.slow  # each makes real keys in a process of its own


@pytest.fixture
def edge(tmp_path: Path) -> Iterator[EnrolmentEdge]:
    with EnrolmentEdge(tmp_path) as edge:
        yield edge


@pytest.fixture
def state_dir(tmp_path: Path) -> Path:
    return tmp_path / "state"


def enroll(token: str, state_dir: Path, *more: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["enroll", "--token", token, "--state-dir", str(state_dir), *more])
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_device_gets_its_identity(edge: EnrolmentEdge, state_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert enroll(edge.token(), state_dir, "--profile", "partner", "--json") == 0
    assert json.loads(capsys.readouterr().out)["device"] == "cam-1"
    identity = load_identity(state_dir)
    assert (identity.file.device, identity.file.profile.value, identity.broker.port) == ("cam-1", "partner", 8883)
    folder = state_dir / "identity"
    names = {"device.key", "device.crt", "ca.crt", "supernode.key", "supernode.pub", "identity.json"}
    assert {path.name for path in folder.iterdir()} == names
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}
    assert b'"_type": "root"' in (state_dir / "tuf" / "root.json").read_bytes()
    (request,) = edge.requests
    assert request["token"] == "secret-1"
    assert request["supernode_public_key"].startswith("ecdsa-sha2-nistp384 ")
    csr = x509.load_pem_x509_csr(request["csr"].encode())
    assert csr.subject.rfc4514_string() == "CN=cam-1"


def test_private_keys_never_leave_the_device(edge: EnrolmentEdge, state_dir: Path) -> None:
    enroll(edge.token(), state_dir)
    assert "PRIVATE" not in json.dumps(edge.requests)


def test_enrolling_twice_is_refused_and_says_how(edge: EnrolmentEdge, state_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    enroll(edge.token(), state_dir)
    before = {path.name: path.read_bytes() for path in (state_dir / "identity").iterdir()}
    assert enroll(edge.token("cam-2"), state_dir) == 3
    assert "--replace" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in (state_dir / "identity").iterdir()} == before
    assert len(edge.requests) == 1, "the second token was not even used"


def test_wrong_fingerprint_gets_neither_secret_nor_request(
    edge: EnrolmentEdge, state_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert enroll(edge.token(fp=Authority("another").fingerprint()), state_dir) == 4
    assert "not the server that made the token" in capsys.readouterr().err
    assert edge.paths == ["/edge/v1/ca.pem"]


def test_used_or_expired_token_is_refused_in_the_servers_words(
    edge: EnrolmentEdge, state_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    problem = {"type": "about:blank", "title": "Gone", "status": 410, "detail": "this invitation was used on 2026-11-22"}
    edge.problem = (410, json.dumps(problem).encode())
    assert enroll(edge.token(), state_dir) == 4
    assert "this invitation was used on 2026-11-22" in capsys.readouterr().err


@pytest.mark.parametrize("body", [b"", b"<html>", b"[1, 2]", b'{"certificate": 3}'])
def test_server_that_fails_may_be_tried_again(edge: EnrolmentEdge, state_dir: Path, body: bytes) -> None:
    edge.problem = (503, body)
    assert enroll(edge.token(), state_dir) == 5
    edge.problem = None
    assert enroll(edge.token(), state_dir) == 0


def test_server_that_is_away_is_said(state_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    content = {"url": f"https://localhost:{port}", "fp": "0" * 64, "t": "x", "id": "cam-1"}
    assert enroll("covey1." + base64.urlsafe_b64encode(json.dumps(content).encode()).decode(), state_dir) == 5
    assert "cannot reach" in capsys.readouterr().err


def _spoil(field: str, value: object) -> Callable[[EnrolmentEdge], None]:
    return lambda edge: edge.answer.update({field: value})


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_spoil("device", "cam-2"), "instead of cam-1"),
        (_spoil("mqtt", {"host": "localhost"}), "no MQTT host and port"),
        (_spoil("ca", Authority("another").pem()), "another CA"),
        (_spoil("tuf_root", "!!!"), "no TUF root"),
        (_spoil("tuf_root", base64.b64encode(b'{"signed": {"_type": "targets"}}').decode()), "expected a TUF root"),
        (_spoil("certificate", ""), "no certificate"),
        (_spoil("fleet_api", None), "no fleet_api"),
        (lambda edge: setattr(edge, "sign_name", "cam-2"), "expected a certificate for cam-1"),
        (lambda edge: setattr(edge, "own_key", True), "another key"),
        (lambda edge: setattr(edge, "sign_days", -1), "expired"),
        (lambda edge: setattr(edge, "sign_by", Authority("fleet CA")), "not signed by the fleet's CA"),
    ],
)
def test_wrong_answer_leaves_nothing_behind(
    edge: EnrolmentEdge, state_dir: Path, capsys: pytest.CaptureFixture[str], spoil: Callable[[EnrolmentEdge], None], words: str
) -> None:
    spoil(edge)
    assert enroll(edge.token(), state_dir) == 4
    assert words in capsys.readouterr().err
    assert not (state_dir / "identity").exists()
    assert not (state_dir / "identity.tmp").exists()


def test_directory_that_cannot_be_written_is_said_before_the_token_is_used(
    edge: EnrolmentEdge, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("in the way")
    assert enroll(edge.token(), tmp_path / "file" / "state") == 3
    assert "cannot write" in capsys.readouterr().err
    assert edge.requests == []


def test_left_over_of_a_power_cut_does_not_stand_in_the_way(edge: EnrolmentEdge, state_dir: Path) -> None:
    (state_dir / "identity.tmp").mkdir(parents=True)
    (state_dir / "identity.tmp" / "device.key").write_text("half")
    assert enroll(edge.token(), state_dir) == 0


def test_a_new_identity_takes_the_place_of_the_old_one_and_everything_else_stays(edge: EnrolmentEdge, state_dir: Path) -> None:
    enroll(edge.token(), state_dir)
    (state_dir / "slots").mkdir()
    (state_dir / "ledger.jsonl").write_text("mine")
    (state_dir / "tuf" / "root.json").write_text("trusted")
    (state_dir / "decommissioned.json").write_text("{}")
    old = (state_dir / "identity" / "device.key").read_bytes()
    assert enroll(edge.token(t="secret-2"), state_dir, "--replace") == 0
    assert (state_dir / "identity" / "device.key").read_bytes() != old
    assert (state_dir / "tuf" / "root.json").read_text() == "trusted"
    names = sorted(path.name for path in state_dir.iterdir())
    assert names == ["agent.lock", "identity", "ledger.jsonl", "slots", "tuf"]


@pytest.mark.parametrize("other", ["device", "profile", "fleet"])
def test_only_the_same_device_of_the_same_fleet_replaces_an_identity(
    edge: EnrolmentEdge, state_dir: Path, tmp_path: Path, other: str, capsys: pytest.CaptureFixture[str]
) -> None:
    enroll(edge.token(), state_dir)
    before = {path.name: path.read_bytes() for path in (state_dir / "identity").iterdir()}
    more = ["--profile", "partner"] if other == "profile" else []
    changes = {"fp": "0" * 64} if other == "fleet" else {}
    assert enroll(edge.token("cam-2" if other == "device" else "cam-1", **changes), state_dir, "--replace", *more) == 3
    assert "use another --state-dir" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in (state_dir / "identity").iterdir()} == before


def test_a_replacement_that_fails_leaves_the_old_identity(edge: EnrolmentEdge, state_dir: Path) -> None:
    enroll(edge.token(), state_dir)
    before = {path.name: path.read_bytes() for path in (state_dir / "identity").iterdir()}
    edge.problem = (403, b"{}")
    assert enroll(edge.token(), state_dir, "--replace") == 4
    assert {path.name: path.read_bytes() for path in (state_dir / "identity").iterdir()} == before


@pytest.mark.parametrize("cut", ["before the old one goes", "between the renames", "before the old one is deleted"])
def test_a_replacement_that_was_cut_off_leaves_a_whole_identity(edge: EnrolmentEdge, state_dir: Path, cut: str) -> None:
    enroll(edge.token(), state_dir)
    identity = state_dir / "identity"
    if cut != "before the old one is deleted":
        shutil.copytree(identity, state_dir / "identity.new")
    if cut != "before the old one goes":
        shutil.copytree(identity, state_dir / "identity.old")
    if cut == "between the renames":
        shutil.rmtree(identity)
    assert load_identity(state_dir).file.device == "cam-1"
    assert load_identity(state_dir).is_complete(0)
    assert enroll(edge.token(), state_dir, "--replace") == 0


def test_a_running_agent_keeps_its_identity(edge: EnrolmentEdge, state_dir: Path) -> None:
    enroll(edge.token(), state_dir)
    lock = StateLock.acquire(state_dir / "agent.lock")
    assert enroll(edge.token(), state_dir, "--replace") == 6
    lock.release()


def test_a_key_is_renewed_by_https_by_the_command(edge: EnrolmentEdge, state_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The whole child over a real TLS listener: the request is signed by the old key, the answer installed as the next generation."""
    enroll(edge.token(), state_dir)
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(["identity", "renew", "--state-dir", str(state_dir)])
    assert ended.value.code == 0
    assert edge.paths[-1] == "/edge/v1/renew"
    asked = edge.requests[-1]
    certificate = x509.load_pem_x509_certificate((state_dir / "identity" / "device.crt").read_bytes())
    assert asked["serial"] == f"{certificate.serial_number:x}"
    key = certificate.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    proof = b"covey renewal\0cam-1\0" + asked["csr"].encode()
    key.verify(base64.b64decode(asked["signature"]), proof, ec.ECDSA(hashes.SHA256()))
    current = load_identity(state_dir).current
    assert (current.generation, current.proven) == (1, False)
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["identity", "--json", "--state-dir", str(state_dir)])
    shown = json.loads(capsys.readouterr().out)
    assert (shown["generation"], shown["proven"], shown["on_expiry"]) == (1, False, "re-enrol")
    assert 29 < shown["days_left"] <= 30
