"""A live fleet for tests: the demo's own stage, brought up and enrolled by the demo's own steps, and then hurt.

Every process is a real one: `covey up` with its children, `covey-agent run`, applications. Flower is switched off, because
nothing here trains. Chunks are sent slowly, so that a big model is under way for a while.
"""

import contextlib
import itertools
import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import httpx
import psutil
from rich.console import Console
from tests.end_to_end.packed_models import SMALL, pack_model
from tests.end_to_end.processes import alive, family_of, log_ends, wait_for

from covey_agent.commands.state import load_machine, open_state
from covey_agent.core.machine import Machine
from covey_server.cli.output import CommandError, ExitCode
from covey_server.demo.actors import Troupe, program
from covey_server.demo.bring_up import bring_up
from covey_server.demo.enrol import enrol
from covey_server.demo.narrator import Narrator
from covey_server.demo.serve import read_answers
from covey_server.demo.stage import DemoOptions, Stage, quiet_environment

T = TypeVar("T")
OVER = frozenset({"completed", "halted", "cancelled"})
SERVER_ENVIRONMENT = {"COVEY_FLOWER__ENABLED": "false", "COVEY_DELIVERY__MAX_MB_PER_S": "2.5"}


@dataclass
class Fleet:
    """A stage with what tests do to it."""

    stage: Stage
    _seeds: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    # -- looking ----------------------------------------------------------------------------------------------------

    def explain(self) -> str:
        """The ends of all logs."""
        return "\n".join(log_ends(folder) for folder in (self.stage.work_dir / "logs", self.stage.server_dir / "logs"))

    def wait(self, what: str, probe: Callable[[], T | None], *, timeout_s: float = 60.0, poll_s: float = 0.1) -> T:
        """Ask until there is something; an API that is away just now has nothing to say."""

        def patient() -> T | None:
            try:
                return probe()
            except CommandError as exc:
                if exc.code is not ExitCode.UNREACHABLE:
                    raise
                return None

        return wait_for(what, patient, timeout_s=timeout_s, explain=self.explain, poll_s=poll_s)

    def device(self, name: str) -> dict[str, Any]:
        """A device as the server sees it."""
        found: dict[str, Any] = self.stage.call().get(f"/devices/{name}")
        return found

    def machine(self, name: str) -> Machine:
        """A device's own deployment machine, as it is on its disk now; the agent may be dead."""
        database = open_state(self.stage.state_dir(name))
        try:
            return load_machine(database)
        finally:
            if database is not None:
                database.close()

    def socket(self, name: str) -> str:
        """Where a device's applications ask."""
        return str(self.stage.state_dir(name) / "run" / "infer.sock")

    def answers(self, name: str) -> list[dict[str, Any]]:
        """What a device's application got so far."""
        return read_answers(self.stage, name)

    def http(self, token: str | None) -> httpx.Client:
        """The bare API with this token, or with none."""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        return httpx.Client(base_url=f"{self.stage.console_url}/api/v1", headers=headers, timeout=60)

    def metric(self, name: str) -> float:
        """The sum of one metric over all of its labels."""
        text = httpx.get(f"{self.stage.console_url}/metrics", timeout=30).text
        lines = [line.rsplit(" ", 1) for line in text.splitlines() if line.startswith((f"{name}_total", f"{name}{{", f"{name} "))]
        return sum(float(value) for _, value in lines)

    # -- acting -----------------------------------------------------------------------------------------------------

    def covey(self, *words: str) -> subprocess.CompletedProcess[str]:
        """An operator's command."""
        environment = {**os.environ, "COVEY_HOME": str(self.stage.server_dir), "COLUMNS": "300"}
        return subprocess.run([program("covey"), *words], capture_output=True, text=True, timeout=120, check=False, env=environment)

    def agent(self, *words: str) -> subprocess.CompletedProcess[str]:
        """A device's own command."""
        return subprocess.run([program("covey-agent"), *words], capture_output=True, text=True, timeout=120, check=False)

    def invite(self, name: str, **more: Any) -> str:
        """A one-time token."""
        return str(self.stage.call().post("/invitations", {"device": name, **more})["token"])

    def join(self, name: str) -> None:
        """Enrol one more device and start its agent."""
        done = self.agent("enroll", "--token", self.invite(name), "--state-dir", str(self.stage.state_dir(name)))
        assert done.returncode == 0, done.stderr
        self.start_agent(name)
        self.wait(f"{name} is online", lambda: self.device(name)["presence"] == "online" and self.device(name)["reported"])

    def start_agent(self, name: str) -> None:
        """Start an enrolled device's agent, as the demo does."""
        environment = quiet_environment()
        if name == self.stage.cut_off_device and self.stage.cable is not None:
            environment["COVEY_AGENT_BROKER_PORT"] = str(self.stage.cable.port)
        argv = [program("covey-agent"), "run", "--state-dir", str(self.stage.state_dir(name))]
        self.stage.troupe.start(name, argv, env=environment)

    def kill(self, name: str) -> None:
        """kill -9 of one of the demo's processes; what it started dies with it, by the kernel's hand."""
        family = family_of(self.stage.troupe.pid(name))
        os.killpg(self.stage.troupe.pid(name), signal.SIGKILL)
        wait_for(f"the end of {name}", lambda: not self.stage.troupe.is_running(name), timeout_s=20)
        self.stage.troupe.stop(name)
        wait_for(f"the end of what {name} had started", lambda: not alive(family), timeout_s=20, explain=lambda: "\n".join(alive(family)))

    def server_child(self, word: str) -> psutil.Process:
        """The child of `covey up` that has this word in its command line."""
        children = psutil.Process(self.stage.troupe.pid("server")).children()
        (found,) = [child for child in children if any(word in part for part in child.cmdline())]
        return found

    def start_server(self) -> None:
        """`covey up` on the folder as it is."""
        argv = [program("covey"), "up", "--work-dir", str(self.stage.server_dir)]
        self.stage.troupe.start("server", argv, env=SERVER_ENVIRONMENT)

    def wait_ready(self) -> None:
        """Wait until the server says that it can do its work."""

        def ready() -> bool:
            with contextlib.suppress(httpx.TransportError):
                return httpx.get(f"{self.stage.console_url}/readyz", timeout=5).status_code == 200
            return False

        wait_for("the server is ready", ready, timeout_s=120, explain=self.explain, poll_s=0.2)

    def pack(self, **more: Any) -> Path:
        """A new model in a folder."""
        seed = next(self._seeds)
        return pack_model(self.stage.work_dir / "packed" / str(seed), seed=seed, **more)

    def publish(self, *, hidden: int = SMALL) -> dict[str, Any]:
        """A new release of digits."""
        return self.import_folder(self.pack(hidden=hidden))

    def import_folder(self, folder: Path) -> dict[str, Any]:
        """Publish what lies in a folder."""
        names = [variant["file"] for variant in json.loads((folder / "release.json").read_text("utf-8"))["variants"]]
        files = [("description", ("release.json", (folder / "release.json").read_bytes(), "application/json"))]
        files += [("artifacts", (name, (folder / name).read_bytes(), "application/octet-stream")) for name in names]
        made: dict[str, Any] = self.stage.call().post("/releases/imports", files=files, data={"unmeasured": "true"})
        return made

    def roll_out(self, release: dict[str, Any], *devices: str, probation_s: float = 1.0, deadline_s: float = 90.0) -> str:
        """Start a rollout to these devices, all at once."""
        order = {
            "release": release["id"],
            "selector": {"devices": list(devices)},
            "phases": [{"name": "all", "percent": 100}],
            "probation_s": probation_s,
            "deadline_s": deadline_s,
            "start": True,
        }
        return str(self.stage.call().post("/rollouts", order)["id"])

    def parts(self, rollout: str) -> dict[str, dict[str, Any]]:
        """Each device's part in a rollout."""
        return {part["device_id"]: part for part in self.stage.call().get_all(f"/rollouts/{rollout}/devices")}

    def wait_over(self, rollout: str, *, timeout_s: float = 120.0) -> dict[str, Any]:
        """Wait until a rollout has ended; how it ended."""

        def over() -> dict[str, Any] | None:
            found: dict[str, Any] = self.stage.call().get(f"/rollouts/{rollout}")
            return found if found["state"] in OVER else None

        return self.wait(f"rollout {rollout} ends", over, timeout_s=timeout_s)

    def deploy(self, release: dict[str, Any], *devices: str) -> None:
        """Have these devices serve a release."""
        ended = self.wait_over(self.roll_out(release, *devices))
        assert ended["state"] == "completed", f"{ended['reason']}\n{self.explain()}"


@contextlib.contextmanager
def live_fleet(folder: Path, *, devices: int, environment: dict[str, str] | None = None) -> Iterator[Fleet]:
    """Bring a fleet up, with more settings of the server if given, and stop it at the end."""
    options = DemoOptions(devices=devices, partners=0, rounds=2, seed=7, work_dir=folder, stay=False, report=None)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "narration.log").open("w", encoding="utf-8") as narration:
        stage = Stage(options, folder, Narrator(Console(file=narration, width=160)), Troupe(folder / "logs"))
        fleet = Fleet(stage)
        try:
            with _environment(SERVER_ENVIRONMENT | (environment or {})):
                bring_up(stage)
            enrol(stage)
            yield fleet
        finally:
            stage.troupe.stop_all()
            if stage.cable is not None:
                stage.cable.close()
            if stage.api is not None:
                stage.api.http.close()


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """The environment that `covey up` is started with; bring_up gives it ours."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
