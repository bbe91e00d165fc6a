"""Program scenarios of the kill harness: a short command that writes the state directory, struck at one boundary, then run again.

What must hold between the strike and the second run is each scenario's `look`; what must hold after it, its `check`.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.fakes.agent.edge import EnrolmentEdge
from tests.faults.shim import Boundary, Fault, plan_strike

from covey_agent.adapters.ledger_file import LEDGER_NAME, LedgerFile
from covey_agent.adapters.store_sqlite import DATABASE_NAME, SqliteState, open_database
from covey_agent.errors import CoveyAgentError
from covey_agent.identity import load_identity
from covey_agent.settings import load_consent

ROOT = Path(__file__).parents[2]
ROUNDS = 4
AGENT = [sys.executable, "-m", "covey_agent.cli"]


@dataclass(frozen=True, slots=True)
class Program:
    """A command that writes, and what must hold of what it leaves."""

    name: str
    command: Callable[[Path, EnrolmentEdge], list[str]]
    look: Callable[[Path, str], None]  # after the strike: state directory, what the command had said
    check: Callable[[Path], None]  # after the second run
    prepare: Callable[[Path], None] = lambda _: None


@dataclass
class ProgramRun:
    """One struck command."""

    boundaries: list[Boundary] = field(default_factory=list)
    struck: bool = False


def strike_program(shim: Path, folder: Path, edge: EnrolmentEdge, program: Program, fault: Fault, at: int) -> ProgramRun:
    """Run it, strike, look, run it again, check. Raises AssertionError with where the fault struck."""
    state_dir = folder / "state"
    state_dir.mkdir(parents=True)
    program.prepare(state_dir)
    command = program.command(state_dir, edge)
    with plan_strike(shim, state_dir, folder / "strike", fault=fault, at=at) as planned:
        said = _run(command, planned.environment)
        run = ProgramRun(planned.boundaries(), planned.has_struck)
    place = next((f"{one.call} {one.place}" for one in run.boundaries if one.number == at), "never reached")
    try:
        program.look(state_dir, said)
        _run(command, {})
        program.check(state_dir)
    except (AssertionError, CoveyAgentError, OSError) as exc:
        raise AssertionError(f"{program.name}, {fault.name} at {at} ({place}): {exc}") from exc
    shutil.rmtree(folder)
    return run


def _run(command: list[str], environment: dict[str, str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=ROOT, env=os.environ | environment)
    return done.stdout


def _charges(state_dir: Path) -> list[int]:
    """The rounds in the ledger, as a new process sees it; both copies must agree."""
    database = open_database(state_dir / DATABASE_NAME)
    try:
        copy = LedgerFile(state_dir / LEDGER_NAME)
        rounds = [entry.round for entry in SqliteState(database, copy).charges()]
        assert set(rounds) <= {entry.round for entry in copy.entries()}, "a charge is in the database and not in its copy"
    finally:
        database.close()
    return rounds


def _look_at_ledger(state_dir: Path, said: str) -> None:
    told = [int(line) for line in said.split()]
    rounds = _charges(state_dir)
    assert set(told) <= set(rounds), f"charged {told}, the ledger holds {rounds}"
    assert len(set(rounds) - set(told)) <= 1, f"charged {told}, the ledger holds {rounds}"


def _check_ledger(state_dir: Path) -> None:
    assert sorted(_charges(state_dir)) == list(range(1, ROUNDS + 1))


def _look_at_identity(state_dir: Path, said: str) -> None:
    try:
        identity = load_identity(state_dir)
    except CoveyAgentError:
        assert "enrolled as" not in said, "it had said that it is enrolled"
        return
    assert identity.file.device == "cam-1"
    for name in (identity.broker.ca_file, identity.broker.cert_file, identity.broker.key_file):
        assert Path(name).stat().st_size > 0, f"{name} is empty"
    assert (state_dir / "tuf" / "root.json").stat().st_size > 0


def _check_identity(state_dir: Path) -> None:
    _look_at_identity(state_dir, "enrolled as cam-1")


def _epsilon(state_dir: Path) -> float:
    return load_consent(state_dir).policy.budgets["digits"].epsilon


def _write_settings(state_dir: Path) -> None:
    (state_dir / "agent.toml").write_text("# mine\n[policy.budgets.digits]\nepsilon = 2.0\ndelta = 1e-5\n")


def _look_at_settings(state_dir: Path, said: str) -> None:
    assert _epsilon(state_dir) in {2.0, 8.0}
    assert (state_dir / "agent.toml").read_text().startswith("# mine\n")


def _check_settings(state_dir: Path) -> None:
    assert _epsilon(state_dir) == 8.0


PROGRAMS = (
    Program(
        "ledger",
        command=lambda state_dir, _: [sys.executable, "-m", "tests.faults.charge", str(state_dir), str(ROUNDS)],
        look=_look_at_ledger,
        check=_check_ledger,
    ),
    Program(
        "enrolment",
        command=lambda state_dir, edge: [*AGENT, "enroll", "--token", edge.token(), "--state-dir", str(state_dir)],
        look=_look_at_identity,
        check=_check_identity,
    ),
    Program(
        "policy",
        command=lambda state_dir, _: [*AGENT, "policy", "set-budget", "digits", "8", "--delta", "1e-5", "--state-dir", str(state_dir)],
        look=_look_at_settings,
        check=_check_settings,
        prepare=_write_settings,
    ),
)
