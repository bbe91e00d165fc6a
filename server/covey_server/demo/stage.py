"""What the demo's steps share: where everything is, who takes part, the API, and the report that grows."""

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from covey_server.cli.http import ApiClient
from covey_server.demo.actors import Troupe, program
from covey_server.demo.cable import Cable
from covey_server.demo.narrator import Narrator
from covey_server.errors import UnavailableError

T = TypeVar("T")
_POLL_S = 0.25


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """What the user asked for."""

    devices: int
    partners: int
    rounds: int
    seed: int
    work_dir: Path | None
    stay: bool
    report: Path | None


class StepFailedError(Exception):
    """Something that the story promises did not happen."""


@dataclass
class Stage:
    """The running demo."""

    options: DemoOptions
    work_dir: Path
    narrator: Narrator
    troupe: Troupe
    api: ApiClient | None = None
    console_url: str = ""
    broker_port: int = 0
    run: str = ""  # id of the federated run
    release: int = 0  # id of the release that devices serve
    budgets: dict[str, float] = field(default_factory=dict)  # participant -> epsilon that it allows
    cable: Cable | None = None
    report: dict[str, Any] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    @property
    def devices(self) -> list[str]:
        """Ids of the devices."""
        return [f"device-{number}" for number in range(1, self.options.devices + 1)]

    @property
    def partners(self) -> list[str]:
        """Ids of the partners."""
        return [f"partner-{number}" for number in range(1, self.options.partners + 1)]

    @property
    def participants(self) -> list[str]:
        """Ids of all who train."""
        return [*self.devices, *self.partners]

    @property
    def cut_off_device(self) -> str:
        """The device whose cable is pulled: the last one, so that it is not the canary."""
        return self.devices[-1]

    @property
    def careful_participant(self) -> str:
        """The partner whose budget will not last for all rounds."""
        return self.partners[-1]

    @property
    def accuracy_goal(self) -> float:
        """What the private model must reach; a run of very few rounds has learnt less."""
        return 0.80 if self.options.rounds >= 6 else 0.70

    @property
    def server_dir(self) -> Path:
        """The server's work folder."""
        return self.work_dir / "server"

    def state_dir(self, participant: str) -> Path:
        """An agent's state folder."""
        return self.work_dir / "agents" / participant

    def share(self, participant: str) -> Path:
        """The only data that a participant has."""
        return self.work_dir / "data" / f"{participant}.npz"

    def example(self, *parts: str) -> Path:
        """A file of the examples folder of this clone. Raises UnavailableError outside a clone."""
        path = Path(__file__).resolve().parents[3].joinpath("examples", *parts)
        if not path.exists():
            raise UnavailableError(f"expected {path}: run the demo from a clone of the repository, where the examples are")
        return path

    def call(self) -> ApiClient:
        """The API; only after the server is up."""
        if self.api is None:
            raise UnavailableError("the server is not up yet")
        return self.api

    def agent_json(self, participant: str, *words: str) -> Any:
        """What an agent's own command says, as `covey-agent ... --json`."""
        argv = [program("covey-agent"), *words, "--state-dir", str(self.state_dir(participant)), "--json"]
        return json.loads(self.troupe.call(f"covey-agent {' '.join(words)}", argv, timeout_s=30))

    def wait(self, what: str, probe: Callable[[], T | None], *, timeout_s: float) -> T:
        """Ask `probe` until it gives something; notice at once when a process has died. Raises StepFailedError."""
        deadline = time.monotonic() + timeout_s
        while True:
            self.troupe.check()
            found = probe()
            if found:
                return found
            if time.monotonic() > deadline:
                raise StepFailedError(f"{what}: not in {timeout_s:.0f} s")
            time.sleep(_POLL_S)

    def held(self, what: str, holds: bool) -> None:
        """Say whether a promise held, and remember it if not."""
        if holds:
            self.narrator.good(what)
        else:
            self.narrator.bad(what)
            self.failures.append(what)

    def note(self, key: str, value: Any) -> None:
        """Put something into report.json."""
        self.report[key] = value


def quiet_environment() -> dict[str, str]:
    """Environment of training processes: one thread each, because all of them share this machine."""
    return {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS") if name not in os.environ}
