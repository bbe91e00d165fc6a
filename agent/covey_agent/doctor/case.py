"""The case: one state directory on one machine, read once, which every check looks at.

What cannot be read is None here; the one check whose business it is says so, and the others skip.
"""

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from covey_agent.adapters.lock import find_holder
from covey_agent.adapters.slot_files import SlotFiles
from covey_agent.adapters.store_sqlite import DATABASE_NAME, open_read_only
from covey_agent.commands.state import load_machine, load_value
from covey_agent.core.machine import Machine
from covey_agent.daemon.live import Live, read_live
from covey_agent.errors import CoveyAgentError
from covey_agent.identity import Identity, load_identity
from covey_agent.settings import Settings, load_settings
from covey_contract.messages import Profile


@dataclass(frozen=True, slots=True)
class Case:
    """Everything that checks share. `root` is where /proc, /sys and /run lie, for tests."""

    state_dir: Path
    environment: Mapping[str, str]
    settings: Settings
    identity: Identity | None = None
    pid: int | None = None  # of the running agent
    live: Live | None = None
    machine: Machine | None = None  # None: it has never run, or its database is unreadable
    time_floor_ms: int = 0  # the latest time that this device is known to have seen
    root: Path = Path("/")
    timeout_s: float = 5.0  # for one step over the network

    @property
    def is_participant_only(self) -> bool:
        """A partner's agent: it deploys nothing."""
        return self.identity is not None and self.identity.file.profile is Profile.PARTNER

    @property
    def slots(self) -> SlotFiles:
        """The models that lie here."""
        return SlotFiles(self.state_dir)

    def now_ms(self) -> int:
        """The machine's clock, believed or not."""
        return time.time_ns() // 1_000_000


def open_case(state_dir: Path, environment: Mapping[str, str], *, root: Path = Path("/"), timeout_s: float = 5.0) -> Case:
    """Read what can be read."""
    try:
        settings = load_settings(state_dir, environment)
    except CoveyAgentError:
        settings = Settings()
    try:
        identity = load_identity(state_dir).through(settings.broker.host, settings.broker.port)
    except CoveyAgentError:
        identity = None
    pid = find_holder(state_dir / "agent.lock")
    machine, floor = _read_database(state_dir / DATABASE_NAME)
    return Case(
        state_dir=state_dir,
        environment=environment,
        settings=settings,
        identity=identity,
        pid=pid,
        live=read_live(state_dir / "run") if pid else None,
        machine=machine,
        time_floor_ms=floor,
        root=root,
        timeout_s=timeout_s,
    )


def _read_database(path: Path) -> tuple[Machine | None, int]:
    if not os.access(path, os.R_OK):
        return None, 0
    try:
        database = open_read_only(path)
    except CoveyAgentError:
        return None, 0
    try:
        return load_machine(database), load_value(database, "time", int) or 0
    except CoveyAgentError:
        return None, 0
    finally:
        database.close()
