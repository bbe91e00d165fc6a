"""Enrolment: an invitation token becomes an identity, all of it or nothing.

    token -> CA by its fingerprint -> key and request made here -> certificate, TUF root, addresses -> identity/

Rules:
- The token names the fleet's CA by fingerprint; whoever answers without it gets neither the token's secret nor a request.
- Private keys never leave the device. Everything is written to `identity.tmp` and becomes `identity` by one rename.
- An identity is written once. `--replace` puts a complete new one in its place, and only for the same device of the same fleet.
"""

import base64
import binascii
import hashlib
import http.client
import json
import os
import shutil
import ssl
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec

from covey_agent import __version__
from covey_agent.adapters.leaving import FILE_NAME as LEFT
from covey_agent.adapters.slot_files import fsync_folder, write_atomically
from covey_agent.errors import RefusedByServerError, StateError, UnreachableError, UsageError
from covey_agent.identity import FOLDER, REPLACED, REPLACING, IdentityFile, load_identity
from covey_contract.errors import ContractError
from covey_contract.ids import DeviceId, parse_device_id
from covey_contract.messages import Profile

TOKEN_PREFIX = "covey1."  # noqa: S105  # the format's name, not a secret
MAX_TOKEN_CHARS = 4096
MAX_ANSWER_BYTES = 4 * 1024 * 1024
TIMEOUT_S = 20.0
_TEMPORARY = "identity.tmp"


@dataclass(frozen=True, slots=True)
class Token:
    """An invitation, as an operator hands it over."""

    url: str
    fingerprint: str
    secret: str
    device: DeviceId


def parse_token(text: str) -> Token:
    """Read a token's text. Raises UsageError with what was expected."""
    text = text.strip()
    if not text.startswith(TOKEN_PREFIX) or len(text) > MAX_TOKEN_CHARS:
        raise UsageError(f"expected a token that begins with {TOKEN_PREFIX}, as `covey device invite` prints it")
    body = text[len(TOKEN_PREFIX) :]
    try:
        content = json.loads(base64.b64decode(body + "=" * (-len(body) % 4), altchars=b"-_", validate=True))
        url, fingerprint, secret, device = (str(content[key]) for key in ("url", "fp", "t", "id"))
        parsed = parse_device_id(device)
    except ContractError as exc:
        raise UsageError(f"the token names no valid device: {exc}") from exc
    except (binascii.Error, ValueError, KeyError, TypeError) as exc:
        raise UsageError("the token is damaged: perhaps a part of it was not copied") from exc
    if urlsplit(url).scheme != "https" or not urlsplit(url).hostname:
        raise UsageError(f"the token must name an https address, got {url!r:.100}")
    if len(fingerprint) != 64 or not all(char in "0123456789abcdef" for char in fingerprint):
        raise UsageError("the token's fingerprint is no sha256")
    return Token(url=url.rstrip("/"), fingerprint=fingerprint, secret=secret, device=parsed)


def enrol(token: Token, state_dir: Path, *, profile: Profile, now_ms: int, replace: bool = False) -> IdentityFile:
    """Make this state directory the device that the token invites. Raises CoveyAgentError, and then nothing has changed.

    With `replace`, a new identity of the same device in the same fleet takes the place of the old one, whatever became of that;
    slots, readings, trusted metadata and the ledger stay.
    """
    if replace:
        refuse_another(state_dir, token, profile)
    else:
        refuse_second(state_dir)
    folder = _make_folder(state_dir)
    try:
        ca_pem = fetch_authority(token)
        _run_keys("make", folder, token.device)
        answer = _request_certificate(token, ca_pem, folder, profile)
        identity = _read_answer(answer, token, profile, now_ms=now_ms)
        (folder / "ca.crt").write_text(ca_pem)
        (folder / "device.crt").write_text(_text(answer, "certificate"))
        (folder / "identity.json").write_bytes(msgspec.json.format(msgspec.json.encode(identity), indent=2))
        _run_keys("check", folder, token.device)
        root = _decode_root(answer)
        if not replace or not (state_dir / "tuf" / "root.json").exists():  # what was trusted before must not go back
            write_atomically(state_dir / "tuf" / "root.json", root, mode=0o600)
        _seal(folder, state_dir / FOLDER)
        (state_dir / LEFT).unlink(missing_ok=True)  # decommissioned before, invited again
    except OSError as exc:
        raise StateError(f"cannot write the identity to {state_dir}: {exc}") from exc
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return identity


def refuse_second(state_dir: Path) -> None:
    """Raise StateError if an identity is there, saying how to begin anew."""
    folder = state_dir / FOLDER
    if folder.exists():
        raise StateError(
            f"{state_dir} is enrolled already. Enrol another device with another --state-dir; "
            "to give this one a new identity, stop the agent, revoke the device on the server, invite it again and add --replace"
        )


def refuse_another(state_dir: Path, token: Token, profile: Profile) -> None:
    """Raise StateError unless a new identity by this token would be the same device of the same fleet, as what is kept belongs to it."""
    try:
        old = load_identity(state_dir).file
    except StateError:
        return  # nothing to replace: the identity was wiped, or never was
    if (old.device, old.ca_fingerprint, old.profile) != (token.device, token.fingerprint, profile):
        raise StateError(
            f"{state_dir} is {old.device} ({old.profile.value}) of the fleet {old.ca_fingerprint[:16]}..., the token is for {token.device} "
            f"({profile.value}) of {token.fingerprint[:16]}...: use another --state-dir"
        )


def fetch_authority(token: Token) -> str:
    """The fleet's CA certificate (PEM), believed only for its fingerprint."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # nothing secret is sent, and the answer is compared with the token's fingerprint
    status, body = call_edge(token.url, "GET", "/edge/v1/ca.pem", context=context)
    if status != 200:
        raise UnreachableError(f"{token.url} answered {status} when asked for the fleet's CA: is it a Covey server?")
    try:
        pem = body.decode("ascii")
        fingerprint = hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem)).hexdigest()
    except ValueError as exc:
        raise RefusedByServerError(f"{token.url} sent something that is no certificate as the fleet's CA") from exc
    if fingerprint != token.fingerprint:
        raise RefusedByServerError(
            f"{token.url} presents a CA with the fingerprint {fingerprint[:16]}..., the token expects {token.fingerprint[:16]}...: "
            "this is not the server that made the token, or somebody stands between"
        )
    return pem


def _request_certificate(token: Token, ca_pem: str, folder: Path, profile: Profile) -> Mapping[str, Any]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=ca_pem)
    request = {
        "token": token.secret,
        "device": token.device,
        "csr": (folder / "device.csr").read_text(),
        "supernode_public_key": (folder / "supernode.pub").read_text().strip(),
        "profile": profile.value,
        "agent_version": __version__,
    }
    status, body = call_edge(token.url, "POST", "/edge/v1/enroll", context=context, body=json.dumps(request).encode("utf-8"))
    try:
        answer = json.loads(body)
    except ValueError:
        answer = {}
    if not isinstance(answer, dict):
        answer = {}
    if status >= 500:
        raise UnreachableError(f"the server failed with {status}: {problem_of(answer)}")
    if status >= 300:
        raise RefusedByServerError(f"the server refused the enrolment ({status}): {problem_of(answer)}")
    return answer


def _read_answer(answer: Mapping[str, Any], token: Token, profile: Profile, *, now_ms: int) -> IdentityFile:
    mqtt = answer.get("mqtt")
    if not isinstance(mqtt, dict) or not isinstance(mqtt.get("port"), int) or not isinstance(mqtt.get("host"), str):
        raise RefusedByServerError("the server's answer names no MQTT host and port")
    if answer.get("device") != token.device:
        raise RefusedByServerError(f"the server enrolled {answer.get('device')!r:.80} instead of {token.device}")
    if hashlib.sha256(ssl.PEM_cert_to_DER_cert(_text(answer, "ca"))).hexdigest() != token.fingerprint:
        raise RefusedByServerError("the server's answer holds another CA than the one that the token names")
    return IdentityFile(
        device=token.device,
        profile=profile,
        url=token.url,
        mqtt_host=mqtt["host"],
        mqtt_port=mqtt["port"],
        fleet_api=_text(answer, "fleet_api"),
        ca_fingerprint=token.fingerprint,
        enrolled_at=now_ms,
    )


def _decode_root(answer: Mapping[str, Any]) -> bytes:
    try:
        root = base64.b64decode(_text(answer, "tuf_root"), validate=True)
        kind = json.loads(root)["signed"]["_type"]
    except (binascii.Error, ValueError, KeyError, TypeError) as exc:
        raise RefusedByServerError("the server's answer holds no TUF root") from exc
    if kind != "root":
        raise RefusedByServerError(f"expected a TUF root, the server sent {kind!r:.40}")
    return root


def call_edge(url: str, method: str, path: str, *, context: ssl.SSLContext, body: bytes | None = None) -> tuple[int, bytes]:
    """One HTTPS call: (status, body). Raises RefusedByServerError for a certificate that is not the fleet's, UnreachableError."""
    parts = urlsplit(url)
    connection = http.client.HTTPSConnection(parts.hostname or "", parts.port or 443, timeout=TIMEOUT_S, context=context)
    try:
        headers = {"Content-Type": "application/json"} if body is not None else {}
        connection.request(method, parts.path.rstrip("/") + path, body=body, headers=headers)
        response = connection.getresponse()
        return response.status, response.read(MAX_ANSWER_BYTES)
    except ssl.SSLCertVerificationError as exc:
        raise RefusedByServerError(f"{url} does not present a certificate of the fleet's CA: {exc.verify_message}") from exc
    except (OSError, http.client.HTTPException) as exc:
        raise UnreachableError(f"cannot reach {url}: {exc or type(exc).__name__}") from exc
    finally:
        connection.close()


def _run_keys(action: str, folder: Path, device: str) -> None:
    command = [sys.executable, "-m", "covey_agent.adapters.enrolment_keys", action, str(folder), device]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode:
        reason = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        error = RefusedByServerError if action == "check" else StateError
        raise error(f"keys and certificate: {reason[0]}")


def _make_folder(state_dir: Path) -> Path:
    folder = state_dir / _TEMPORARY
    try:
        state_dir.mkdir(parents=True, mode=0o700, exist_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(mode=0o700)
    except OSError as exc:
        raise StateError(f"cannot write to {state_dir}: {exc.strerror}") from exc
    return folder


def _seal(folder: Path, final: Path) -> None:
    """Everything on the disk, readable by the owner only, then one rename."""
    (folder / "device.csr").unlink()
    for path in folder.iterdir():
        path.chmod(0o600)
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
    fsync_folder(folder)
    if final.exists():
        _replace(folder, final)
    else:
        folder.rename(final)
    fsync_folder(final.parent)


def _replace(folder: Path, final: Path) -> None:
    """Two renames; cut off between them, `load_identity` finishes what was complete."""
    new, old = final.with_name(REPLACING), final.with_name(REPLACED)
    for left in (new, old):
        shutil.rmtree(left, ignore_errors=True)
    folder.rename(new)
    fsync_folder(final.parent)
    final.rename(old)
    new.rename(final)
    fsync_folder(final.parent)
    shutil.rmtree(old)


def _text(answer: Mapping[str, Any], key: str) -> str:
    value = answer.get(key)
    if not isinstance(value, str) or not value:
        raise RefusedByServerError(f"the server's answer has no {key}")
    return value


def problem_of(answer: Mapping[str, Any]) -> str:
    """The words of an RFC 9457 problem."""
    return str(answer.get("detail") or answer.get("title") or answer.get("error") or "no reason given")[:300]
