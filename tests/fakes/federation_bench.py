"""A whole federation on loopback: a server's work folder, a real SuperLink, the real fleet edge over TLS, real participants.

    with FederationBench(tmp_path) as bench:
        bench.add_participant("pi-1", data=path)
        run = bench.create_run(...)
        bench.tick_until(lambda: bench.run(run).state is RunState.COMPLETED, timeout_s=60)

Only MQTT is missing: invitations are handed over, and accepted, directly.
"""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec
import uvicorn
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from fastapi import FastAPI
from sqlmodel import select

from covey_contract.codec import decode, decode_order
from covey_contract.ids import DeviceId
from covey_contract.messages import InviteToRun, Outcome, Reply, Signed
from covey_server.clock import to_millis, utc_now
from covey_server.db import Database
from covey_server.devices.models import Device
from covey_server.federation import service
from covey_server.federation.control import SuperLinkControl
from covey_server.federation.edge import FleetEdge
from covey_server.federation.models import Run
from covey_server.federation.superlink import FLOWER_ENVIRONMENT, superlink_spec
from covey_server.federation.ticks import RunKeeper
from covey_server.initialise import initialise
from covey_server.outbox import OutboxMessage
from covey_server.parts import Parts
from covey_server.releases.director import FileDirector
from covey_server.releases.repository import TufRepository
from covey_server.releases.store import FolderBlobStore
from covey_server.settings import Settings, load_settings
from covey_server.supervisor import Supervisor

PARTICIPANT = Path(__file__).parent / "participant.py"


class FederationBench:
    """Everything that a federated run needs, started and stopped together."""

    def __init__(self, folder: Path, *, round_timeout_s: float = 60.0) -> None:
        self.folder = folder
        work_dir = folder / "server"
        work_dir.mkdir()
        flower, edge = free_port(), free_port()
        (work_dir / "covey.toml").write_text(
            f"[flower]\nport = {flower}\nround_timeout_s = {round_timeout_s}\n[edge]\nport = {edge}\n", encoding="utf-8"
        )
        self.settings: Settings = load_settings(work_dir)
        initialise(self.settings)
        self.db = Database(self.settings.resolved_database_url)
        repository = TufRepository(self.settings)
        self.parts = Parts(
            settings=self.settings,
            db=self.db,
            clock=utc_now,
            authority=None,  # type: ignore[arg-type]  # nothing here issues certificates
            permissions=None,  # type: ignore[arg-type]  # and there is no broker
            blobs=FolderBlobStore(self.settings.path("blobs")),
            repository=repository,
            director=FileDirector.load(self.settings),
        )
        self.superlink = Supervisor([superlink_spec(self.settings)], self.settings.path("logs"))
        self._edge = FleetEdge(self.settings)
        self._edge_server = self._edge_listener()
        self._edge_thread = threading.Thread(target=self._edge_server.run, daemon=True)
        self._control = SuperLinkControl.open(self.settings)
        self.keeper = RunKeeper(self.parts, self._control)
        self._participants: dict[str, subprocess.Popen[str]] = {}

    def __enter__(self) -> Self:
        try:
            self.superlink.start()
            self._edge_thread.start()
            self.wait(lambda: self._edge_server.started, timeout_s=20)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for process in self._participants.values():
            process.terminate()
        for process in self._participants.values():
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._edge_server.should_exit = True
        if self._edge_thread.is_alive():
            self._edge_thread.join(10)
        self._control.close()
        self.superlink.stop()
        self.db.close()

    @property
    def edge_address(self) -> str:
        """host:port of the fleet edge."""
        return f"127.0.0.1:{self.settings.edge.port}"

    @property
    def ca_file(self) -> Path:
        """The fleet's CA certificate."""
        return self.settings.path("pki", "ca.crt")

    def add_device(self, device: str) -> Path:
        """Enrol a device; the path of its SuperNode key."""
        key = ec.generate_private_key(ec.SECP384R1())
        path = self.folder / f"{device}.key"
        path.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()))
        public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode()
        with self.db.begin() as session:
            session.add(Device(id=device, profile="partner", supernode_public_key=public))
        return path

    def create_run(self, spec: service.RunSpec, code: bytes) -> str:
        """Create the task and the run, and invite everybody."""
        now = utc_now()
        with self.db.begin() as session:
            service.create_task(
                session, spec.task, code, purpose="testing", dataset="points", labels=["0", "1"], blobs=self.parts.blobs,
                repository=self.parts.repository, actor="test", now=now,
            )  # fmt: skip
            run = service.create_run(session, spec, blobs=self.parts.blobs, actor="test", now=now)
            service.start_run(
                session, run.id, director=self.parts.director, fleet_api=self.edge_address, invite_timeout=timedelta(seconds=60),
                round_timeout=timedelta(seconds=60), actor="test", now=now,
            )  # fmt: skip
            return run.id

    def accept(self, device: str, *, key: Path, data: Path, task: Path, refused: list[int] | None = None) -> subprocess.Popen[str]:
        """Take the device's invitation out of the outbox, accept it, and start its trainer."""
        invitation = self.invitation_of(device)
        with self.db.begin() as session:
            reply = Reply(id=invitation.id, outcome=Outcome.ACCEPTED, at=to_millis(utc_now()))
            assert service.take_reply(session, DeviceId(device), reply, now=utc_now())
        job = {
            "fleet_api": invitation.fleet_api,
            "ca": str(self.ca_file),
            "key": str(key),
            "task": str(task),
            "data": str(data),
            "state": str(self.folder / f"{device}.state"),
            "invitation": msgspec.to_builtins(invitation),
            "refused": refused or [],
        }
        path = self.folder / f"{device}.json"
        path.write_text(json.dumps(job), encoding="utf-8")
        return self.start_participant(device)

    def start_participant(self, device: str) -> subprocess.Popen[str]:
        """Start, or start again, a participant's trainer."""
        with (self.folder / f"{device}.out").open("a") as out, (self.folder / f"{device}.err").open("a") as err:
            process = subprocess.Popen(
                [sys.executable, str(PARTICIPANT), str(self.folder / f"{device}.json")],
                stdout=out,
                stderr=err,
                text=True,
                env={**os.environ, **FLOWER_ENVIRONMENT},
            )
        self._participants[device] = process
        return process

    def kill_participant(self, device: str) -> None:
        """kill -9."""
        process = self._participants.pop(device)
        process.kill()
        process.wait()

    def invitation_of(self, device: str) -> InviteToRun:
        """The newest invitation that was published to a device."""
        with self.db.read() as session:
            topic = f"covey/v1/d/{device}/down/command"
            message = [row for row in session.exec(select(OutboxMessage)) if row.topic == topic][-1]
        order = decode_order(decode(message.payload, Signed))
        assert isinstance(order, InviteToRun)
        return order

    def told(self, device: str, what: str) -> list[dict[str, Any]]:
        """What a participant's agent was asked or told."""
        lines = (self.folder / f"{device}.out").read_text("utf-8").splitlines()
        return [line for line in map(json.loads, lines) if line["what"] == what]

    def run(self, run_id: str) -> Run:
        """The run as it stands."""
        with self.db.read() as session:
            return service.get_run(session, run_id)

    def tick_until(self, done: Callable[[], bool], *, timeout_s: float, supervise: bool = True) -> None:
        """Do what the worker does until `done`."""

        def step() -> bool:
            if supervise:
                self.superlink.poll()
            self.keeper.tick()
            return done()

        self.wait(step, timeout_s=timeout_s)

    def wait(self, done: Callable[[], bool], *, timeout_s: float) -> None:
        """Ask until it is so; with the logs in the failure, because there is no other way to see into these processes."""
        deadline = time.monotonic() + timeout_s
        while not done():
            if time.monotonic() > deadline:
                raise AssertionError(f"not within {timeout_s} s\n{self.logs()}")
            time.sleep(0.2)

    def logs(self) -> str:
        """The end of every log."""
        files = [*self.settings.path("logs").glob("*.log"), *self.folder.glob("*.err"), *self.folder.glob("*.out")]
        return "\n".join(f"== {file.name}\n{file.read_text('utf-8', 'replace')[-3000:]}" for file in files)

    def _edge_listener(self) -> uvicorn.Server:
        @asynccontextmanager
        async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
            yield
            await self._edge.close()

        app = FastAPI(lifespan=lifespan, openapi_url=None)
        app.include_router(self._edge.router())
        config = uvicorn.Config(
            app,
            host="127.0.0.1",
            port=self.settings.edge.port,
            ssl_certfile=os.fspath(self.settings.path("pki", "edge.crt")),
            ssl_keyfile=os.fspath(self.settings.path("pki", "edge.key")),
            log_level="warning",
            ws="none",
        )
        return uvicorn.Server(config)


def free_port() -> int:
    """A free loopback port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
