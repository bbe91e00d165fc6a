"""The server's programs, each of which can run alone: the API with its two listeners, the worker, and what `covey up` supervises."""

import asyncio
import contextlib
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import uvicorn
from fastapi import FastAPI

from covey_server import app as wiring
from covey_server.broker.embedded import embedded_broker, is_listening
from covey_server.broker.mosquitto import mosquitto_broker
from covey_server.clock import utc_now
from covey_server.console import end_streams
from covey_server.db import Database
from covey_server.devices.authority import FileAuthority
from covey_server.devices.certificates import broker_rights
from covey_server.errors import UnavailableError
from covey_server.federation.superlink import superlink_spec
from covey_server.observability.logs import configure_logs
from covey_server.processes import ProcessSpec
from covey_server.settings import Settings

_BACKLOG = 2048  # connections that may wait: a fleet that comes back at once


def check_ports(settings: Settings) -> None:
    """Raise UnavailableError if a port that we need is taken: a stranger behind it would look like our own program."""
    _refuse_taken_port(settings.api.host, settings.api.port)
    _refuse_taken_port(settings.edge.host, settings.edge.port)
    if settings.broker.kind != "external":
        _refuse_taken_port(settings.broker.host, settings.broker.port)
    if settings.flower.enabled:
        _refuse_taken_port("127.0.0.1", settings.flower.port)


def process_specs(settings: Settings) -> list[ProcessSpec]:
    """Everything `covey up` runs, in the order in which it must start."""
    specs: list[ProcessSpec] = []
    authority = FileAuthority.open(settings)
    if settings.broker.kind != "external":
        database = Database(settings.resolved_database_url)
        broker = embedded_broker if settings.broker.kind == "embedded" else mosquitto_broker
        specs.append(broker(settings, authority=authority, rights=list(broker_rights(database)), now=utc_now()))
        database.close()
    specs.append(_own(settings, "api", lambda: is_listening(settings.api.host, settings.api.port)))
    specs.append(_own(settings, "worker", lambda: True))
    if settings.flower.enabled:
        specs.append(superlink_spec(settings))
    return specs


def run_api(settings: Settings) -> None:
    """Serve the API and console on one listener and the edge (TLS) on another, until SIGTERM or SIGINT."""
    configure_logs(settings.log, program="api")
    parts = wiring.open_parts(settings)
    pki = settings.path("pki")
    console = _Server(wiring.build_api(parts), settings.api.host, settings.api.port)
    edge = _Server(wiring.build_edge(parts), settings.edge.host, settings.edge.port, certificate=pki / "edge.crt", key=pki / "edge.key")
    asyncio.run(_serve(console, edge))


def run_worker(settings: Settings) -> None:
    """Run the worker until SIGTERM or SIGINT."""
    configure_logs(settings.log, program="worker")
    wiring.build_worker(wiring.open_parts(settings)).run()


def _own(settings: Settings, name: str, ready: object) -> ProcessSpec:
    assert callable(ready)  # noqa: S101 - given above
    argv = [sys.executable, "-m", "covey_server.cli.main", name, "--work-dir", str(settings.path())]
    return ProcessSpec(name=name, argv=argv, env={}, cwd=None, ready=ready)


class _Server(uvicorn.Server):
    """One of several listeners in a process: signals are handled once, for all of them."""

    def __init__(self, app: FastAPI, host: str, port: int, *, certificate: Path | None = None, key: Path | None = None) -> None:
        super().__init__(_config(app, host, port, certificate=certificate, key=key))
        self.app = app

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to `_serve`."""
        yield


def _config(app: FastAPI, host: str, port: int, *, certificate: Path | None, key: Path | None) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        host=host,
        port=port,
        log_config=None,
        access_log=False,
        server_header=False,
        backlog=_BACKLOG,
        ssl_certfile=certificate,
        ssl_keyfile=key,
        timeout_graceful_shutdown=3,
    )


async def _serve(*servers: _Server) -> None:
    for server in servers:
        _refuse_taken_port(server.config.host, server.config.port)

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        for server in servers:
            end_streams(server.app)  # open pages would hold the listener until the grace time is over
            server.should_exit = True

    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, on_signal)
    await asyncio.gather(*(server.serve() for server in servers))


def _refuse_taken_port(host: str, port: int) -> None:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as exc:
            raise UnavailableError(
                f"cannot listen on {host}:{port} ({exc.strerror}): set another port in covey.toml, or stop what uses it"
            ) from exc
