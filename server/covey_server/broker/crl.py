"""Revocation on Mosquitto. Reloading a revocation list refuses new connections and leaves the live ones alone, so three steps are needed:

    rights and revocation list written -> SIGHUP -> every session of a device that lost its last certificate is taken over and ended

- The device's rights go with the reload, so that from then on even a session that could not be found says and hears nothing.
- Which sessions a device has is read from the broker's own log, which names client id and certificate: a device cannot hide one.
- A revocation list that has run out would lock everybody out: it is signed anew at half of its time, long before.
"""

import contextlib
import fcntl
import json
import logging
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from covey_contract.codec import digest_of
from covey_contract.ids import parse_device_id
from covey_server.broker.files import write_whole
from covey_server.broker.mosquitto_files import ADMIN, MosquittoFiles, rights_file
from covey_server.clock import Clock
from covey_server.devices.authority import FileAuthority
from covey_server.errors import UnavailableError
from covey_server.parts import BrokerRight
from covey_server.settings import PkiSettings

logger = logging.getLogger(__name__)

_CONNECTED = re.compile(rb"New client connected from \S+ as (.*) \(p\d+, c\d+, k\d+, u'([a-z0-9-]{1,64})'\)")
_POLL_S = 0.02
_MAX_LOG_BYTES = 32 * 1024 * 1024
_MAX_SESSIONS = 32  # that are remembered of one device


@dataclass(frozen=True, slots=True)
class MosquittoPermissions:
    """Applies rights and revocations to the supervised Mosquitto. Safe from several processes."""

    files: MosquittoFiles
    authority: Callable[[], FileAuthority]
    pki: PkiSettings
    clock: Clock
    timeout_s: float = 15.0  # it answers in milliseconds, on a machine that has any time for it

    def apply(self, rights: Iterable[BrokerRight]) -> None:
        """Let exactly the certificates in force connect; returns when a running broker has ended the sessions of all others.

        `rights` is read while the lock is held. Raises UnavailableError if the broker does not take it in time.
        """
        self.files.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with self._locked():
            now = self.clock()
            revoked, gone = _judge(rights, now=now)
            before = self._applied()
            digest = digest_of(json.dumps([revoked, gone]).encode())
            # Signed in the future: the clock was wrong then or is now, and the broker would take the list as not valid yet.
            is_fresh = before.get("signed_at", "") <= now.isoformat() < before.get("renew_at", "")
            if before.get("digest") == digest and is_fresh and not self.files.pending.exists():
                return
            self.files.pending.touch()  # whoever dies in between has left a note that it must be applied
            self._write(revoked, gone, now=now)
            self._reload()
            self._end_sessions([device for device in gone if device not in before.get("gone", [])])
            renew_at = now + timedelta(days=self.pki.crl_days) / 2
            write_whole(
                self.files.applied,
                json.dumps({"digest": digest, "gone": gone, "signed_at": now.isoformat(), "renew_at": renew_at.isoformat()}),
            )
            self.files.pending.unlink()

    def _write(self, revoked: list[tuple[str, str]], gone: list[str], *, now: datetime) -> None:
        serials = [(serial, datetime.fromisoformat(at)) for serial, at in revoked]
        crl = self.authority().sign_revocations(serials, now=now, next_update=now + timedelta(days=self.pki.crl_days))
        write_whole(self.files.crl, crl.decode("ascii"))
        write_whole(self.files.acl, rights_file(gone))

    def _applied(self) -> dict[str, Any]:
        try:
            content = json.loads(self.files.applied.read_text("utf-8"))
        except (OSError, ValueError):
            return {}
        return content if isinstance(content, dict) and self.files.crl.exists() and self.files.acl.exists() else {}

    def _reload(self) -> None:
        pid = self._broker_pid()
        if pid is None:
            return  # not running: it reads everything when it starts
        if self.files.log.exists() and self.files.log.stat().st_size > _MAX_LOG_BYTES:
            self._remember_sessions()
            self.files.log.rename(self.files.log.with_suffix(".log.1"))
        os.kill(pid, signal.SIGHUP)
        # The broker is one thread: when it has answered a login that began after the signal, it has reloaded.
        self._take_over([ADMIN])

    def _end_sessions(self, devices: list[str]) -> None:
        if not devices or self._broker_pid() is None:
            return
        sessions = self._sessions()
        ids = [client_id for device in devices for client_id in sessions.get(device, [])]
        self._take_over(ids)
        logger.info("ended %d sessions of %s", len(ids), ", ".join(devices))

    def _take_over(self, client_ids: list[str]) -> None:
        """Connect under each id, which ends the session that has it, and leave. Raises UnavailableError."""
        if client_ids:
            self._await_listener()
        for client_id in client_ids:
            done = threading.Event()
            client = mqtt.Client(
                CallbackAPIVersion.VERSION2,
                client_id=client_id,
                clean_session=True,
                protocol=MQTTProtocolVersion.MQTTv311,
                transport="unix",
            )
            client.username_pw_set(ADMIN, self.files.password.read_text("ascii"))
            client.on_connect = _on_success(done)
            try:
                client.connect(str(self.files.socket), 1, keepalive=10)
                client.loop_start()
                if not done.wait(self.timeout_s):
                    raise UnavailableError(f"the broker does not answer on its local listener; see {self.files.log}")
            except OSError as exc:
                raise UnavailableError(f"the broker's local listener cannot be reached: {exc}") from exc
            finally:
                client.disconnect()
                client.loop_stop()

    def _await_listener(self) -> None:
        """A broker that has just been started has written its pid before it listens here."""
        deadline = time.monotonic() + self.timeout_s
        while not is_unix_listening(self.files.socket):
            if time.monotonic() > deadline:
                raise UnavailableError(f"the broker's local listener {self.files.socket} cannot be reached")
            time.sleep(_POLL_S)

    def _sessions(self) -> dict[str, list[str]]:
        """Client ids by device, the newest last."""
        found = self._remembered()
        with contextlib.suppress(FileNotFoundError), self.files.log.open("rb") as log:
            for line in log:
                match = _CONNECTED.search(line)
                if match is not None:
                    ids = found.setdefault(match.group(2).decode("ascii"), [])
                    client_id = match.group(1).decode("utf-8", "replace")
                    if client_id in ids:
                        ids.remove(client_id)
                    ids.append(client_id)
        return {device: ids[-_MAX_SESSIONS:] for device, ids in found.items()}

    def _remembered(self) -> dict[str, list[str]]:
        try:
            content = json.loads(self.files.sessions.read_text("utf-8"))
        except (OSError, ValueError):
            return {}
        return content if isinstance(content, dict) else {}

    def _remember_sessions(self) -> None:
        write_whole(self.files.sessions, json.dumps(self._sessions()))

    def _broker_pid(self) -> int | None:
        """The running broker's pid; None if there is none. The pid file may be left over from before a power cut."""
        try:
            pid = int(self.files.pid.read_text("ascii"))
            command = os.readlink(f"/proc/{pid}/exe") if os.path.isdir("/proc/self") else "mosquitto"  # noqa: PTH112, PTH115
            os.kill(pid, 0)
        except (OSError, ValueError):
            return None
        return pid if "mosquitto" in command else None

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with self.files.lock.open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def is_unix_listening(path: Path) -> bool:
    """Whether something accepts connections at this socket."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True


def _judge(rights: Iterable[BrokerRight], *, now: datetime) -> tuple[list[tuple[str, str]], list[str]]:
    """(serial, when) of what is revoked and has not expired, and the devices that have no certificate in force."""
    revoked: set[tuple[str, str]] = set()
    in_force: dict[str, bool] = {}
    for right in rights:
        device = parse_device_id(right.device)  # checked again: this text becomes configuration
        in_force[device] = in_force.get(device, False) or right.revoked_at is None
        if right.revoked_at is not None and right.serial and right.expires_at > now:
            revoked.add((right.serial, right.revoked_at.isoformat()))
    return sorted(revoked), sorted(device for device, is_in in in_force.items() if not is_in)


def _on_success(done: threading.Event) -> Callable[..., None]:
    def on_connect(_client: mqtt.Client, _user: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        if not reason.is_failure:
            done.set()

    return on_connect
