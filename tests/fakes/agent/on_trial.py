"""A device that cannot reach anybody, with a proven model in slot A and a new one in slot B about to be activated.

The real daemon goes on from there by itself: check, worker, probation, and back if there is evidence. Nothing is faked but the past.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec
from tests.fakes.agent.daemon import Daemon, descendants
from tests.fakes.agent.fleet import HEALTHY_INK
from tests.fakes.nats_broker import free_port, wait_until
from tests.fakes.pki import make_client
from tests.fakes.poison import INK, Behaviour, claimed_outputs, poison_file, poison_variant, tame_images
from tests.fakes.tiny_releases import fill_slot, make_release

from covey_agent.adapters.ledger_file import LEDGER_NAME, LedgerFile
from covey_agent.adapters.store_sqlite import DATABASE_NAME, SqliteState, open_database
from covey_agent.commands.state import load_machine, open_state
from covey_agent.core.machine import Deployment, Machine
from covey_contract.codec import digest_of, encode
from covey_contract.messages import DeploymentState as S
from covey_contract.release import Bounds, Release, Runtime
from covey_server.devices.authority import FileAuthority
from covey_server.settings import Settings

DEVICE = "cam-1"
BOUNDS = Bounds(p95_latency_ms=40.0, max_error_rate=0.05, max_constant_run=20)


def make_digits(
    version: int, behaviour: Behaviour = Behaviour.CRASH, *, ink: float = HEALTHY_INK, runtime: Runtime = Runtime.ONNXRUNTIME
) -> tuple[Release, bytes]:
    """A release of one artifact, and the artifact; healthy unless told otherwise."""
    data = poison_file(behaviour, runtime, ink=ink)
    images = tame_images(4)
    outputs = claimed_outputs(behaviour, images)
    labels = [str(digit) for digit in range(10)]
    release = make_release([poison_variant(data, runtime)], inputs=images, outputs=outputs, model="digits", version=version, labels=labels)
    return msgspec.structs.replace(release, bounds=BOUNDS), data


@dataclass
class TrialDevice:
    """Release 1 is proven, release 2 is tried. Use as a context; the daemon is started by `start`."""

    state_dir: Path
    daemon: Daemon
    poison: str = ""  # digest of release 2's artifact

    @classmethod
    def make(
        cls,
        folder: Path,
        behaviour: Behaviour = Behaviour.CRASH,
        *,
        ink: float = INK,
        runtime: Runtime = Runtime.ONNXRUNTIME,
        state: S = S.STAGED,
        probation_s: float = 600.0,
        settings: Mapping[str, object] | None = None,
    ) -> "TrialDevice":
        """In state COMMITTED release 2 is the proven one, and release 1 was before it.

        Args:
            settings: of the agent, by the names of their environment variables without the prefix.
        """
        state_dir = folder / "state"
        _make_lonely_identity(folder / "ca", state_dir)
        release, data = make_digits(1)
        fill_slot(state_dir / "slots" / "A", release, variant=release.variants[0].name, data=data)
        release, data = make_digits(2, behaviour, ink=ink, runtime=runtime)
        variant = release.variants[0]
        fill_slot(state_dir / "slots" / "B", release, variant=variant.name, data=data)
        trial = Deployment(
            id="dep-2", generation=2, model="digits", version=2, manifest=digest_of(encode(release)), slot="B",
            variant=variant.name, artifact=variant.artifact, probation_s=probation_s, started_at=1, changed_at=1,
        )  # fmt: skip
        trying = Machine(state=state, committed="A", deployment=trial)
        proven = Machine(state=state, committed="B", deployment=trial, previous="A", proven=trial)
        _write_machine(state_dir, proven if state is S.COMMITTED else trying)
        daemon = Daemon(state_dir, {f"COVEY_AGENT_{name}": str(value) for name, value in (settings or {}).items()})
        return cls(state_dir, daemon, variant.artifact)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.daemon.stop(9)

    @property
    def socket(self) -> str:
        """Where applications ask."""
        return str(self.state_dir / "run" / "infer.sock")

    def start(self) -> None:
        """Start the agent, and wait until the new model serves."""
        self.daemon.start()
        self.wait_for(S.PROBATION)

    def machine(self) -> Machine:
        """What the device has written about itself."""
        database = open_state(self.state_dir)
        try:
            return load_machine(database)
        finally:
            if database is not None:
                database.close()

    def wait_for(self, state: S) -> Machine:
        """Until the deployment is in this state."""
        wait_until(lambda: self.machine().state is state, what=f"{state.value}, it is {self.machine()}\n{self.daemon.log()}", timeout_s=60)
        return self.machine()

    def newest_worker(self) -> int:
        """The process of the model on trial: the one of the proven model was started before it."""
        workers = [pid for pid in descendants(self.daemon.pid) if b"covey_agent.workers.infer" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        return max(workers, key=_started_at)


def _started_at(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[19])


def _write_machine(state_dir: Path, machine: Machine) -> None:
    database = open_database(state_dir / DATABASE_NAME)
    SqliteState(database, LedgerFile(state_dir / LEDGER_NAME)).save({"machine": msgspec.json.encode(machine)})
    database.close()


def _make_lonely_identity(folder: Path, state_dir: Path) -> None:
    """What enrolment leaves, for a server that is not there."""
    now = datetime.now(UTC)
    files = make_client(folder / DEVICE, FileAuthority.create(Settings(work_dir=folder), now=now), DEVICE, now=now)
    (state_dir / "identity").mkdir(parents=True)
    for source, name in ((files.certificate, "device.crt"), (files.key, "device.key"), (files.ca, "ca.crt")):
        (state_dir / "identity" / name).write_bytes(source.read_bytes())
    content = {
        "device": DEVICE,
        "profile": "device",
        "url": "https://localhost:1",
        "mqtt_host": "localhost",
        "mqtt_port": free_port(),
        "fleet_api": "localhost:1",
        "ca_fingerprint": "0" * 64,
        "enrolled_at": 1,
    }
    (state_dir / "identity" / "identity.json").write_text(json.dumps(content))
