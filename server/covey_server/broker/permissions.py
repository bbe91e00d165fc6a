"""The broker's table of who may say what: one user a certificate, rewritten as a whole and reloaded.

A device may publish below its own `up/` and to its own `status`, and read its own `down/` and artifact chunks; only the
gateway may do all. The broker maps a certificate's DNS name to the user of that name, and takes users over MQTT alone, so
that a user without a password is nobody over its native protocol. Every certificate has a name of its own, so that the old one
of a device can go while the new one stays. A user that is gone loses its live connection at once.

In the broker's words `/` is `.`, and an MQTT filter `x/#` needs both `x` and `x.>`.
"""

import fcntl
import logging
import os
import re
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self

from covey_contract.ids import DeviceId, parse_device_id
from covey_contract.topics import PREFIX, Channel, device_topic
from covey_server.broker.files import BrokerFiles, write_whole
from covey_server.devices.rules import SERVER_NAME
from covey_server.errors import InvalidInputError, UnavailableError
from covey_server.parts import BrokerRight
from covey_server.settings import Settings

logger = logging.getLogger(__name__)

_ROOT = PREFIX.replace("/", ".")
_INBOX = "$MQTT.sub.>"  # where the broker delivers QoS 1 messages; it refuses MQTT filters that name it
_RELOADED = b"Reloaded server configuration"
_RELOAD_FAILED = b"Failed to reload server configuration"
_POLL_S = 0.005
_CERTIFICATE_NAME = re.compile(r"\.[0-9a-f]{1,16}")


def users_file(rights: Iterable[BrokerRight]) -> str:
    """The table as the broker's configuration."""
    users = [_user(SERVER_NAME, publish=[f"{_ROOT}.>"], subscribe=[_ROOT, f"{_ROOT}.>", _INBOX])]
    in_force = {(right.device, right.user) for right in rights if right.revoked_at is None}
    users += [_device_user(device, user) for device, user in sorted(in_force)]
    return "authorization { users: [\n" + ",\n".join(users) + "\n] }\n"


@dataclass(frozen=True, slots=True)
class NatsPermissions:
    """Applies the table to the embedded broker. Safe from several processes."""

    files: BrokerFiles
    reload_timeout_s: float = 5.0

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """The table of this server's broker."""
        return cls(BrokerFiles.of(settings))

    def apply(self, rights: Iterable[BrokerRight]) -> None:
        """Let exactly the certificates in force connect; returns when a running broker has taken the table.

        `rights` is read while the lock is held. Raises UnavailableError if the broker refuses or does not take it in time.
        """
        self.files.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with self._locked():
            table = users_file(rights)
            is_same = self.files.users.exists() and self.files.users.read_text("utf-8") == table
            if is_same and not self.files.pending.exists():
                return
            self.files.pending.touch()  # before the table: whoever dies in between has left a note that it must be applied
            write_whole(self.files.users, table)
            self._reload()
            self.files.pending.unlink()

    def _reload(self) -> None:
        pid = self._broker_pid()
        if pid is None:
            return  # not running: it reads the table when it starts
        start = self.files.log.stat().st_size if self.files.log.exists() else 0
        os.kill(pid, signal.SIGHUP)
        answer = _await_line(lambda: self._log_since(start), (_RELOADED, _RELOAD_FAILED), timeout_s=self.reload_timeout_s)
        if answer != _RELOADED:
            raise UnavailableError(f"the broker did not take its new table of users; see {self.files.log}")

    def _broker_pid(self) -> int | None:
        """The running broker's pid; None if there is none. The pid file may be left over from before a power cut."""
        try:
            pid = int(self.files.pid.read_text("ascii"))
            command = os.readlink(f"/proc/{pid}/exe") if os.path.isdir("/proc/self") else "nats-server"  # noqa: PTH112, PTH115
            os.kill(pid, 0)
        except (OSError, ValueError):
            return None
        return pid if "nats" in command else None

    def _log_since(self, start: int) -> bytes:
        try:
            with self.files.log.open("rb") as log:
                log.seek(start if self.files.log.stat().st_size >= start else 0)  # shorter: it was rotated
                return log.read()
        except FileNotFoundError:
            return b""

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with self.files.lock.open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _device_user(device: DeviceId, user: str) -> str:
    own = f"{_ROOT}.d.{parse_device_id(device)}"  # checked again: this text becomes configuration
    if user != device and _CERTIFICATE_NAME.fullmatch(user.removeprefix(device)) is None:
        raise InvalidInputError(f"expected {device} or its certificate's name as a user, got {user!r:.100}")
    status = device_topic(device, Channel.STATUS).replace("/", ".")
    return _user(user, publish=[f"{own}.up.>", status], subscribe=[f"{own}.down", f"{own}.down.>", f"{_ROOT}.a", f"{_ROOT}.a.>", _INBOX])


def _user(name: str, *, publish: list[str], subscribe: list[str]) -> str:
    return (
        f'{{user: "{name}", allowed_connection_types: ["MQTT"], '
        f"permissions: {{publish: [{_quoted(publish)}], subscribe: [{_quoted(subscribe)}]}}}}"
    )


def _quoted(subjects: list[str]) -> str:
    return ", ".join(f'"{subject}"' for subject in subjects)


def _await_line(read: Callable[[], bytes], wanted: tuple[bytes, ...], *, timeout_s: float) -> bytes | None:
    deadline = time.monotonic() + timeout_s
    while True:
        text = read()
        for line in wanted:
            if line in text:
                return line
        if time.monotonic() >= deadline:
            return None
        time.sleep(_POLL_S)
