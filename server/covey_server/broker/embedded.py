"""The embedded broker: a native NATS server that speaks MQTT 3.1.1 over mutual TLS, supervised by `covey up`.

- Whoever connects shows a certificate of the fleet's CA; its name is the user. There is no login without one.
- Retained messages and sessions are kept on disk (JetStream), so a restart loses none of them.
- A payload over the contract's limit ends the connection.
- The native listener cannot be switched off; it is bound to loopback, asks for the same certificates, and takes no user.
- Monitoring over HTTP stays off.
"""

import json
import os
import socket
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path

from covey_contract.limits import MAX_PAYLOAD_BYTES
from covey_server.broker.binary import check_version, find_binary
from covey_server.broker.files import BrokerFiles, write_whole
from covey_server.broker.permissions import NatsPermissions
from covey_server.devices.authority import FileAuthority, KeyFiles
from covey_server.parts import BrokerRight
from covey_server.processes import ProcessSpec
from covey_server.settings import Settings

HEADER_ROOM = 4096  # topic and MQTT header count towards the broker's limit
_CONFIG = """\
# Written by Covey at every start; edit covey.toml instead.
server_name: {name}
listen: "127.0.0.1:-1"
tls {{ {tls} }}
pid_file: {pid}
log_file: {log}
logfile_size_limit: 10MB
logfile_max_num: 3
max_payload: {max_payload}
max_pending: 16MB
max_connections: 200000
write_deadline: "10s"
jetstream {{ store_dir: {store}, max_mem: 64MB, max_file: {store_max_mb}MB{limits} }}
mqtt {{
  listen: {listen}
  tls {{ {tls} }}
  ack_wait: "{ack_wait_s}s"
  max_ack_pending: {max_ack_pending}
  reject_qos2_publish: true
}}
include {users}
"""
# When what was delivered and never acknowledged comes again, also to a session that has reconnected meanwhile. Longer than a
# chunk group takes on a slow link, or the broker would send it twice.
ACK_WAIT_S = 30
# Every subscription of every device's session is a consumer of one stream. Since 2.15 a stream takes 1000 unless told otherwise: with
# four subscriptions each, the 251st device would be connected and hear nothing.
_NO_CONSUMER_LIMIT = ", limits: { default_max_consumers: -1 }"
MAX_ACK_PENDING = 2000  # unacknowledged messages a subscription; the gateway's queue holds as many


def embedded_broker(settings: Settings, *, authority: FileAuthority, rights: Iterable[BrokerRight], now: datetime) -> ProcessSpec:
    """Write the broker's configuration and table of users, and describe the process. Raises UnavailableError or InvalidInputError."""
    binary = find_binary(settings.broker)
    version = check_version(binary)
    files = BrokerFiles.of(settings)
    names = {settings.broker.host, settings.broker.public_host, "localhost", "127.0.0.1"}
    keys = authority.issue_server_certificate(names, role="broker", now=now)
    NatsPermissions(files).apply(rights)
    write_whole(files.config, broker_config(settings, files=files, keys=keys, version=version))
    return ProcessSpec(
        name="broker",
        argv=[str(binary), "-c", str(files.config)],
        env={"PATH": os.environ.get("PATH", "")},
        cwd=files.folder,
        ready=lambda: is_listening(settings.broker.host, settings.broker.port),
    )


def broker_config(settings: Settings, *, files: BrokerFiles, keys: KeyFiles, version: str) -> str:
    """The configuration's text for this version of the broker."""
    # On one line: the broker's parser separates entries by commas or line ends.
    tls = ", ".join(
        f"{key}: {value}"
        for key, value in {
            "cert_file": _path(keys.certificate),
            "key_file": _path(keys.key),
            "ca_file": _path(keys.ca),
            "verify_and_map": "true",
            "timeout": "10",
            "min_version": '"1.2"',
        }.items()
    )
    host = settings.broker.host
    return _CONFIG.format(
        name=json.dumps(f"covey-{settings.fleet_name}"),
        tls=tls,
        pid=_path(files.pid),
        log=_path(files.log),
        max_payload=MAX_PAYLOAD_BYTES + HEADER_ROOM,
        store=_path(files.store),
        store_max_mb=settings.broker.store_max_mb,
        limits=_NO_CONSUMER_LIMIT if tuple(map(int, version.split("."))) >= (2, 15) else "",
        listen=json.dumps(f"[{host}]:{settings.broker.port}" if ":" in host else f"{host}:{settings.broker.port}"),
        ack_wait_s=ACK_WAIT_S,
        max_ack_pending=MAX_ACK_PENDING,
        users=f"./{files.users.name}",
    )


def is_listening(host: str, port: int) -> bool:
    """Whether something accepts connections there."""
    try:
        with socket.create_connection((host, port), timeout=0.5):
            return True
    except OSError:
        return False


def _path(path: Path) -> str:
    return json.dumps(str(path))
