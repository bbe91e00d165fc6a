"""The Flower SuperLink as a supervised process: bound to loopback, TLS, SuperNodes by key, SQLite, no dependency installation.

Its control API has no login, so nothing but the edge (`edge.py`) may reach its port from outside, and only the fleet paths.
"""

import os
import socket
import ssl
import sys
from pathlib import Path

from covey_server.processes import ProcessSpec
from covey_server.settings import Settings

HOST = "127.0.0.1"
# Everything by which Flower would talk to the internet or install code is off.
FLOWER_ENVIRONMENT = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.5",  # seconds until a started run is noticed
    "OMP_NUM_THREADS": "1",  # the ServerApp measures models beside everything else
}


def superlink_spec(settings: Settings) -> ProcessSpec:
    """How `covey up` starts the SuperLink. The certificate is the authority's for the role `superlink`."""
    programs = Path(sys.executable).parent
    pki = settings.path("pki")
    argv = [
        str(programs / "flower-superlink"),
        *("--host", HOST),
        *("--port", str(settings.flower.port)),
        *("--ssl-ca-certfile", str(pki / "ca.crt")),
        *("--ssl-certfile", str(pki / "superlink.crt")),
        *("--ssl-keyfile", str(pki / "superlink.key")),
        *("--database", str(settings.path("flower", "state.db"))),
        "--enable-supernode-auth",
        "--disable-runtime-dependency-installation",
    ]
    environment = {
        **FLOWER_ENVIRONMENT,
        "FLWR_HOME": str(settings.path("flower", "home")),
        # The SuperLink finds its helper programs, and they the ServerApp's interpreter, by name.
        "PATH": f"{programs}{os.pathsep}{os.environ.get('PATH', '')}",
    }
    settings.path("flower").mkdir(parents=True, exist_ok=True, mode=0o700)
    ca = pki / "ca.crt"
    return ProcessSpec(
        name="superlink", argv=argv, env=environment, cwd=settings.path("flower"), ready=lambda: is_ready(settings.flower.port, ca=ca)
    )


def is_ready(port: int, *, ca: Path) -> bool:
    """Whether the SuperLink answers over TLS, with a certificate of the fleet's CA."""
    context = ssl.create_default_context(cafile=str(ca))
    try:
        with socket.create_connection((HOST, port), timeout=1) as raw, context.wrap_socket(raw, server_hostname=HOST) as connection:
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            return connection.recv(64).startswith(b"HTTP/1.1 ")
    except OSError:
        return False
