"""Enrolment through the real command against the real server: what is wrong gets an exit code, a reason, and no half-made identity."""

import base64
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.end_to_end.live_fleet import Fleet
from tests.fakes.pki import make_csr, make_supernode_key

from covey_agent.adapters.enrolment import TOKEN_PREFIX

pytestmark = [pytest.mark.end_to_end, pytest.mark.slow, pytest.mark.timeout(400)]
USAGE, STATE, REFUSED, UNREACHABLE = 2, 3, 4, 5  # covey-agent's exit codes


def changed(token: str, **changes: str) -> str:
    """An invitation token with some of its parts replaced."""
    body = token.removeprefix(TOKEN_PREFIX)
    content: dict[str, Any] = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
    text = json.dumps(content | changes).encode("utf-8")
    return TOKEN_PREFIX + base64.urlsafe_b64encode(text).decode("ascii").rstrip("=")


def secret_of(token: str) -> str:
    body = token.removeprefix(TOKEN_PREFIX)
    return str(json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))["t"])


def assert_refused(fleet: Fleet, token: str, state_dir: Path, *, code: int, words: str) -> None:
    """The command ends with this code and says so, and there is no identity, nor half of one."""
    done = fleet.agent("enroll", "--token", token, "--state-dir", str(state_dir))
    assert done.returncode == code, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert not (state_dir / "identity").exists()
    assert not (state_dir / "identity.tmp").exists()


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ({"t": "A" * 43}, REFUSED, "not known here"),
        ({"id": "device-1"}, REFUSED, "another device"),
        ({"id": "a/b"}, USAGE, "no valid device"),
        ({"id": ".."}, USAGE, "no valid device"),
        ({"fp": "0" * 64}, REFUSED, "fingerprint"),
        ({"url": "http://127.0.0.1:1"}, USAGE, "https"),
        ({"url": "https://127.0.0.1:1"}, UNREACHABLE, "cannot reach"),
    ],
    ids=["wrong secret", "for another name", "slash in the name", "dots as the name", "another CA", "no TLS", "nobody there"],
)
def test_a_changed_token_is_refused(fleet: Fleet, tmp_path: Path, changes: dict[str, str], code: int, words: str) -> None:
    token = changed(fleet.invite("guest-changed"), **changes)
    assert_refused(fleet, token, tmp_path / "state", code=code, words=words)


def test_a_damaged_token_is_refused(fleet: Fleet, tmp_path: Path) -> None:
    assert_refused(fleet, fleet.invite("guest-damaged")[:-9], tmp_path / "state", code=USAGE, words="damaged")


def test_an_expired_invitation_is_refused(fleet: Fleet, tmp_path: Path) -> None:
    token = fleet.invite("guest-late", ttl_hours=1e-6)  # 3.6 ms: over before the command has started
    assert_refused(fleet, token, tmp_path / "state", code=REFUSED, words="expired")


def test_a_token_works_once(fleet: Fleet, tmp_path: Path) -> None:
    token = fleet.invite("guest-once")
    first = fleet.agent("enroll", "--token", token, "--state-dir", str(tmp_path / "first"))
    assert first.returncode == 0, first.stderr
    assert_refused(fleet, token, tmp_path / "second", code=REFUSED, words="used already")


def test_a_folder_is_enrolled_once(fleet: Fleet, tmp_path: Path) -> None:
    state_dir = tmp_path / "state"
    assert fleet.agent("enroll", "--token", fleet.invite("guest-twice"), "--state-dir", str(state_dir)).returncode == 0
    before = {path.name: path.read_bytes() for path in (state_dir / "identity").iterdir()}
    again = fleet.agent("enroll", "--token", fleet.invite("guest-other"), "--state-dir", str(state_dir))
    assert again.returncode == STATE
    assert "is enrolled already" in again.stderr
    assert {path.name: path.read_bytes() for path in (state_dir / "identity").iterdir()} == before


@pytest.mark.parametrize("name", ["device-1", "guest-csr.evil", "covey-server", ["guest-csr", "covey-server"]], ids=str)
def test_a_request_for_another_name_gets_no_certificate(fleet: Fleet, name: str | list[str]) -> None:
    token = fleet.invite("guest-csr")
    body = {
        "token": secret_of(token),
        "device": "guest-csr",
        "csr": make_csr(name),
        "supernode_public_key": make_supernode_key(),
        "profile": "device",
        "agent_version": "0",
    }
    answer = httpx.post(f"{edge_url(token)}/edge/v1/enroll", json=body, verify=False, timeout=30)  # noqa: S501 - loopback, and nothing secret
    assert answer.status_code in {403, 422}, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert "certificate" not in answer.json()
    assert "guest-csr" not in {device["id"] for device in fleet.stage.call().get_all("/devices")}


@pytest.mark.parametrize("name", ["a/b", "+", "..", "#", "UPPER", "x" * 65, "", "pi\n"])
def test_a_name_that_is_no_device_id_is_not_invited(fleet: Fleet, name: str) -> None:
    done = fleet.covey("device", "invite", name)
    assert done.returncode == 4, done.stderr
    assert done.stdout == ""


def edge_url(token: str) -> str:
    body = token.removeprefix(TOKEN_PREFIX)
    return str(json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))["url"])
