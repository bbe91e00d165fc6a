"""Commands that write the state directory, killed at one point and then simply given again: old or new in between, new after it."""

import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.faults.damage import damage_unsynced
from tests.faults.lane import Lane, wait_for
from tests.faults.shim import Point
from tests.faults.sweep import PATIENCE_S, Case, Result

from covey_agent.errors import CoveyAgentError, StateError
from covey_agent.identity import load_identity
from covey_agent.settings import load_consent

EXIT_ENROLLED = 3
_SETTINGS = "# mine\n[policy.budgets.digits]\nepsilon = 2.0\ndelta = 1e-5\n"


@dataclass(frozen=True, slots=True)
class Command:
    """One command line; `problems` looks at what a kill left (False) and at what the repetition made of it (True)."""

    name: str
    arguments: Callable[[Lane], list[str]]
    problems: Callable[[Lane, bool], list[str]]
    prepare: Callable[[Lane], None]
    may_exit: tuple[int, ...] = (0,)  # the repetition


def record_command(lane: Lane, command: Command) -> list[Point]:
    """Run it undisturbed. Returns every point."""
    _begin(lane, command)
    code = _run(lane, command)
    assert code == 0, lane.last_words()
    problems = command.problems(lane, True)
    assert not problems, problems
    return lane.control.points()


def run_command_case(lane: Lane, command: Command, case: Case) -> Result:
    """Kill, look, repeat, look."""
    begun = time.monotonic()
    result = Result(case)
    _begin(lane, command)
    lane.control.arm(case.point, case.mode)
    _run(lane, command)
    result.reached, result.starts = lane.control.fired, 2
    lane.control.disarm()
    if result.reached:
        result.damaged = damage_unsynced(lane.state_dir, lane.control.calls(), case.damage, before=lane.folder / "nothing")
        result.problems += command.problems(lane, False)
    code = _run(lane, command)
    if code not in command.may_exit:
        result.problems.append(f"the repetition ended with {code}: {lane.last_words()}")
    result.problems += command.problems(lane, True)
    result.seconds = time.monotonic() - begun
    return result


def _begin(lane: Lane, command: Command) -> None:
    lane.reset(None)
    command.prepare(lane)
    lane.control.forget()


def _run(lane: Lane, command: Command) -> int:
    words = command.arguments(lane)
    life = lane.start(*words, role=words[0])
    wait_for(lambda: life.is_over, timeout_s=PATIENCE_S)
    code = life.end(signal.SIGKILL)
    lane.life = None
    return code


def _forget_identity(lane: Lane) -> None:
    for path in sorted(lane.state_dir.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    lane.state_dir.rmdir()


def _look_at_identity(lane: Lane, must_be: bool) -> list[str]:
    try:
        identity = load_identity(lane.state_dir)
    except StateError as exc:
        return [f"there is no identity: {exc}"] if must_be or (lane.state_dir / "identity").exists() else []
    files = [identity.broker.ca_file, identity.broker.cert_file, identity.broker.key_file, str(lane.state_dir / "tuf" / "root.json")]
    empty = [file for file in files if not _is_pem_or_json(file)]
    return [f"{file} is not whole" for file in empty]


def _is_pem_or_json(path: str) -> bool:
    try:
        text = Path(path).read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        return False
    return text.rstrip().endswith(("-----", "}")) and text.startswith(("-----BEGIN", "{"))


def _write_settings(lane: Lane) -> None:
    (lane.state_dir / "agent.toml").write_text(_SETTINGS)


def _look_at_settings(lane: Lane, must_be: bool) -> list[str]:
    try:
        epsilon = load_consent(lane.state_dir).policy.budgets["digits"].epsilon
    except CoveyAgentError as exc:
        return [f"the settings are unreadable: {exc}"]
    own = (lane.state_dir / "agent.toml").read_text().startswith("# mine\n")
    wrong = epsilon != 8.0 if must_be else epsilon not in {2.0, 8.0}
    return [f"epsilon is {epsilon}"] * wrong + ["what the owner wrote is gone"] * (not own)


def all_commands(token: Callable[[], str]) -> tuple[Command, ...]:
    """`token` makes an invitation of a server that is there."""
    return (
        Command(
            "enrolment",
            lambda _: ["enroll", "--token", token()],
            _look_at_identity,
            _forget_identity,
            may_exit=(0, EXIT_ENROLLED),
        ),
        Command(
            "policy",
            lambda _: ["policy", "set-budget", "digits", "8", "--delta", "1e-5"],
            _look_at_settings,
            _write_settings,
        ),
    )
