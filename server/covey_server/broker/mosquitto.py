"""Mosquitto as the fleet's broker: its configuration and process, supervised by `covey up`.

- Who connects is who the certificate's CN says (`use_identity_as_username`); the rights are patterns over that name, so a fleet of any
  size needs no line per device. Revoked certificates are refused by the revocation list.
- Client ids stay the client's own (`use_username_as_clientid` is off): a device has several connections, with ids that nobody can guess.
- Subscriptions are always granted; what a device may not read is not delivered. Nothing here relies on SUBACK.
- What belongs to a listener is written below one: above the first, it would open Mosquitto's default listener, port 1883 without TLS.
- A second listener, a Unix socket that only this user can reach, with a password besides, is how a live session is ended (`crl.py`).
"""

import base64
import hashlib
import os
import pwd
import re
import secrets
import shutil
import subprocess
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path

from covey_contract.limits import MAX_PAYLOAD_BYTES
from covey_server.broker.crl import MosquittoPermissions, is_unix_listening
from covey_server.broker.embedded import HEADER_ROOM, is_listening
from covey_server.broker.files import write_whole
from covey_server.broker.mosquitto_files import ADMIN, MosquittoFiles
from covey_server.devices.authority import FileAuthority, KeyFiles, write_private
from covey_server.errors import InvalidInputError, UnavailableError
from covey_server.parts import BrokerRight
from covey_server.processes import ProcessSpec
from covey_server.settings import BrokerSettings, Settings

OLDEST = (2, 0, 11)
_MAX_SOCKET_PATH = 107  # of sockaddr_un
_PASSWORD_ROUNDS = 101  # as mosquitto_passwd
_VERSION = re.compile(r"mosquitto version (\d+)\.(\d+)\.(\d+)")
_CONFIG = """\
# Written by Covey at every start; edit covey.toml instead.
per_listener_settings true
user {user}
pid_file {pid}
log_dest file {log}
log_type error
log_type warning
log_type notice
log_type information
connection_messages true
log_timestamp_format %Y-%m-%dT%H:%M:%S
persistence true
persistence_location {store}/
autosave_interval 60
persistent_client_expiration 14d
max_inflight_messages 100
max_queued_messages 20000
max_queued_bytes 0
max_packet_size {max_packet_size}

listener {port} {host}
tls_version tlsv1.2
cafile {ca}
certfile {certificate}
keyfile {key}
crlfile {crl}
require_certificate true
use_identity_as_username true
use_username_as_clientid false
allow_anonymous false
allow_zero_length_clientid false
acl_file {acl}

listener 0 {socket}
allow_anonymous false
allow_zero_length_clientid false
password_file {password_file}
acl_file {no_rights}
"""


def mosquitto_broker(settings: Settings, *, authority: FileAuthority, rights: Iterable[BrokerRight], now: datetime) -> ProcessSpec:
    """Write the broker's configuration, rights and revocation list, and describe the process.

    Raises UnavailableError or InvalidInputError.
    """
    binary = find_mosquitto(settings.broker)
    files = MosquittoFiles.of(settings)
    files.store.mkdir(parents=True, exist_ok=True, mode=0o700)
    files.folder.chmod(0o700)
    names = {settings.broker.host, settings.broker.public_host, "localhost", "127.0.0.1"}
    keys = authority.issue_server_certificate(names, role="broker", now=now)
    _write_password(files)
    write_whole(files.no_rights, f"user {ADMIN}\ntopic deny #\n")
    MosquittoPermissions(files, lambda: authority, settings.pki, lambda: now).apply(rights)
    write_whole(files.config, mosquitto_config(settings, files=files, keys=keys))
    files.socket.unlink(missing_ok=True)  # left over by a broker that was killed, it would keep the next one from listening
    return ProcessSpec(
        name="broker",
        argv=[str(binary), "-c", str(files.config)],
        env={"PATH": os.environ.get("PATH", "")},
        cwd=files.folder,
        ready=lambda: is_listening(settings.broker.host, settings.broker.port) and is_unix_listening(files.socket),
    )


def mosquitto_config(settings: Settings, *, files: MosquittoFiles, keys: KeyFiles) -> str:
    """The configuration's text."""
    if " " in str(files.folder):
        raise InvalidInputError(f"mosquitto takes no path with a space in it: {files.folder}")
    if len(str(files.socket)) > _MAX_SOCKET_PATH:
        raise InvalidInputError(
            f"the path of a Unix socket may have {_MAX_SOCKET_PATH} characters: choose a shorter work folder than {files.folder}"
        )
    return _CONFIG.format(
        user=pwd.getpwuid(os.geteuid()).pw_name,  # started as root, it would otherwise become a user who cannot read our files
        pid=files.pid,
        log=files.log,
        store=files.store,
        max_packet_size=MAX_PAYLOAD_BYTES + HEADER_ROOM,
        port=settings.broker.port,
        host=settings.broker.host,
        ca=keys.ca,
        certificate=keys.certificate,
        key=keys.key,
        crl=files.crl,
        acl=files.acl,
        socket=files.socket,
        password_file=files.password_file,
        no_rights=files.no_rights,
    )


def find_mosquitto(settings: BrokerSettings) -> Path:
    """The operator's mosquitto, new enough. Raises UnavailableError or InvalidInputError."""
    found = shutil.which(settings.mosquitto) or shutil.which(settings.mosquitto, path="/usr/sbin:/usr/local/sbin")
    if found is None:
        raise UnavailableError(f"there is no program {settings.mosquitto}: install mosquitto, or set broker.mosquitto")
    done = subprocess.run([found, "-h"], capture_output=True, text=True, timeout=10, check=False)
    version = _VERSION.search(done.stdout)
    if version is None or tuple(int(part) for part in version.groups()) < OLDEST:
        raise InvalidInputError(f"{found} is not mosquitto {'.'.join(map(str, OLDEST))} or newer: {done.stdout[:80]!r}")
    return Path(found)


def _write_password(files: MosquittoFiles) -> None:
    """A fresh password at every start; in the clear for us, hashed for the broker."""
    password, salt = secrets.token_hex(16), secrets.token_bytes(12)
    digest = hashlib.pbkdf2_hmac("sha512", password.encode(), salt, _PASSWORD_ROUNDS)
    write_private(files.password, password.encode())
    hashed = f"{ADMIN}:$7${_PASSWORD_ROUNDS}${base64.b64encode(salt).decode()}${base64.b64encode(digest).decode()}\n"
    write_private(files.password_file, hashed.encode())
