"""What the agent is doing when it is killed, and what must be true in the end."""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from tests.fakes.poison import tame_images, wild_images
from tests.faults.fleet import BETTER, GOOD, POISON
from tests.faults.lane import Lane
from tests.faults.trainer import read_notes

from covey_agent.adapters.ledger_file import LEDGER_NAME, LedgerFile
from covey_contract.messages import DeploymentState, InviteToRun, PrivacyPlan, ReleaseQuarantine, Reported

ROUNDS = 3
EXPIRY_MS = 4_000_000_000_000
TASK = "a" * 64


@dataclass(frozen=True, slots=True)
class Scenario:
    """One course of events. `prepare` makes the template once; `begin` sets it off; `drive` is called while one waits."""

    name: str
    prepare: Callable[[Lane], None]
    begin: Callable[[Lane], None]
    is_done: Callable[[Lane], bool]
    problems: Callable[[Lane], list[str]]
    drive: Callable[[Lane], None] = lambda _: None
    serves: int = GOOD  # the version that must serve in the end
    settings: Mapping[str, str] = field(default_factory=dict)
    stops: bool = False  # the clean stop belongs to it: its points count too


def newest(lane: Lane) -> Reported | None:
    """The state that the device reported last."""
    reports = lane.heard.reports
    return reports[-1] if reports else None


def is_in(lane: Lane, deployment: str, *states: DeploymentState) -> bool:
    """Whether the device reports that this deployment is in one of these states, and that it serves."""
    report = newest(lane)
    return bool(
        report and report.serving and report.deployment and report.deployment.deployment == deployment and report.deployment.state in states
    )


def _bare(lane: Lane) -> None:
    lane.reset(None, generation=0)


def _serving(version: int) -> Callable[[Lane], None]:
    def prepare(lane: Lane) -> None:
        _bare(lane)
        lane.start()
        deployment = lane.fleet.order(lane.name, version)
        _await(lambda: is_in(lane, deployment, DeploymentState.COMMITTED), lane)
        _await(lambda: not lane.durable_readings(), lane)
        assert lane.stop() == 0, lane.last_words()

    return prepare


def _quarantined(lane: Lane) -> None:
    _serving(GOOD)(lane)
    lane.start()
    deployment = lane.fleet.order(lane.name, POISON, probation_s=60)

    def is_rolled_back() -> bool:
        _strike_in_probation(lane)
        return is_in(lane, deployment, DeploymentState.ROLLED_BACK)

    _await(is_rolled_back, lane)
    _await(lambda: not lane.durable_readings(), lane)
    assert lane.stop() == 0, lane.last_words()


def _trusting(lane: Lane) -> None:
    """A device whose owner allows the task and gives it a budget."""
    _serving(GOOD)(lane)
    settings = f'[policy]\ntasks = ["{TASK}"]\n[policy.budgets.digits]\nepsilon = 100.0\ndelta = 1e-5\n[datasets]\ndigits = "/dev/null"\n'
    (lane.state_dir / "agent.toml").write_text(settings)


def _await(condition: Callable[[], object], lane: Lane, timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"{lane.heard.states('deployment', 'state')}\n{lane.last_words()}"
        time.sleep(0.02)


def _strike_in_probation(lane: Lane) -> None:
    report = newest(lane)
    if report and report.serving and report.deployment and report.deployment.state is DeploymentState.PROBATION:
        lane.strike(wild_images(1))


def _order(version: int, *, probation_s: float = 0.3) -> Callable[[Lane], None]:
    def begin(lane: Lane) -> None:
        lane.fleet.order(lane.name, version, probation_s=probation_s)

    return begin


def _reached(state: DeploymentState) -> Callable[[Lane], bool]:
    return lambda lane: is_in(lane, "dep-11", state)


def _deployed(lane: Lane) -> list[str]:
    return _told_once(lane, "committed") + _quarantine_is(lane, 0)


def _rolled_back(lane: Lane) -> list[str]:
    return _told_once(lane, "rolled_back") + _quarantine_is(lane, 1)


def _told_once(lane: Lane, state: str) -> list[str]:
    """The end of the deployment is told exactly once, and nothing of it comes after that."""
    found = []
    told = [
        reading.values.get("state")
        for _, reading in sorted(lane.heard.readings.items())
        if reading.kind == "deployment" and reading.values.get("deployment") == "dep-11"
    ]
    if told.count(state) != 1:
        found.append(f"the history tells {state} {told.count(state)} times: {told}")
    elif told[-1] != state:
        found.append(f"the history goes on after {state}: {told}")
    reported = [one.deployment.state.value for one in lane.heard.reports if one.deployment and one.deployment.deployment == "dep-11"]
    if state in reported and set(reported[reported.index(state) :]) != {state}:
        found.append(f"the deployment was taken up again after {state}: {reported}")
    attempted = lane.value("attempted") or []
    if attempted.count("dep-11") != 1:
        found.append(f"the deployment is noted {attempted.count('dep-11')} times as attempted")
    return found


def _quarantine_is(lane: Lane, count: int) -> list[str]:
    machine = lane.value("machine") or {}
    proven = json.loads((lane.state_dir / "slots" / "proven.json").read_text())
    found = []
    if len(machine.get("quarantine", [])) != count:
        found.append(f"expected {count} digests in quarantine, found {machine.get('quarantine')}")
    if proven.get("quarantine", []) != machine.get("quarantine", []) or proven.get("committed") != machine.get("committed"):
        found.append(f"proven.json says {proven}, the database {machine}")
    return found


def _make_readings(lane: Lane) -> None:
    """Applications ask all the time, so that there is something to read."""
    heard = lane.heard
    lane.fleet.deaf.discard(lane.name) if len(heard.readings) > 4 else lane.fleet.deaf.add(lane.name)
    report = newest(lane)
    if report and report.serving:
        lane.strike(tame_images(1))


def _has_readings(lane: Lane) -> bool:
    return len(lane.heard.readings) >= 12 and bool(newest(lane)) and not lane.durable_readings()


def _invite(lane: Lane) -> None:
    plan = PrivacyPlan(level="record", noise_multiplier=1.0, clipping_norm=1.0, sample_rate=0.1, steps=10, delta=1e-5)
    invitation = InviteToRun(
        id="invite-1",
        device=lane.name,
        expires_at=EXPIRY_MS,
        run="run-1",
        task="digits",
        task_digest=TASK,
        purpose="research",
        dataset="digits",
        rounds=ROUNDS,
        plan=plan,
        fleet_api="localhost:1",
    )
    lane.fleet.command(lane.name, invitation)


def _invite_until_answered(lane: Lane) -> None:
    """A server repeats what was not answered."""
    if not lane.heard.replies and newest(lane) and time.monotonic() % 0.5 < 0.05:
        _invite(lane)


def _is_trained(lane: Lane) -> bool:
    told = [reading.values.get("round") for reading in list(lane.heard.readings.values()) if reading.kind == "training"]
    report = newest(lane)
    return set(told) >= set(range(1, ROUNDS + 1)) and bool(report) and report is not None and report.training == "" and report.serving


def _charged(lane: Lane) -> list[str]:
    rows = lane.rows("SELECT run, round FROM ledger ORDER BY id")
    copy = LedgerFile(lane.state_dir / LEDGER_NAME).entries()
    noted = read_notes(lane.folder / "rounds")
    found = []
    if rows != [("run-1", number) for number in range(1, ROUNDS + 1)]:
        found.append(f"the ledger holds {rows}")
    if {entry.round for entry in copy} != set(range(1, ROUNDS + 1)):
        found.append(f"the ledger's copy holds {[entry.round for entry in copy]}")
    if set(noted.values()) != {"allowed"}:
        found.append(f"a round was refused: {noted}")
    return found


def _release_from_quarantine(lane: Lane) -> None:
    if "digest" not in lane.memory:  # once: it is no longer in quarantine when the command is repeated
        lane.memory["digest"] = _quarantined_digest(lane)
    digest = lane.memory["digest"]
    lane.fleet.command(lane.name, ReleaseQuarantine(id="release-1", device=lane.name, expires_at=EXPIRY_MS, digest=digest))


def _quarantined_digest(lane: Lane) -> str:
    return str(lane.value("machine")["quarantine"][0]["digest"])


def _repeat_release(lane: Lane) -> None:
    if not lane.heard.replies and newest(lane) and time.monotonic() % 0.5 < 0.05:
        _release_from_quarantine(lane)


def _is_released(lane: Lane) -> bool:
    report = newest(lane)
    return bool(lane.heard.replies) and bool(report and report.serving and not report.quarantine)


SCENARIOS = (
    Scenario("first deployment", _bare, _order(GOOD), _reached(DeploymentState.COMMITTED), _deployed, serves=GOOD),
    Scenario("deployment", _serving(GOOD), _order(BETTER), _reached(DeploymentState.COMMITTED), _deployed, serves=BETTER),
    Scenario(
        "rollback",
        _serving(GOOD),
        _order(POISON, probation_s=60),
        _reached(DeploymentState.ROLLED_BACK),
        _rolled_back,
        drive=_strike_in_probation,
        serves=GOOD,
    ),
    Scenario(
        "readings",
        _serving(GOOD),
        lambda _: None,
        _has_readings,
        lambda _: [],
        drive=_make_readings,
        serves=GOOD,
        settings={"COVEY_AGENT_READINGS_SYSTEM_INTERVAL_S": "0.1", "COVEY_AGENT_READINGS_ACK_TIMEOUT_S": "1"},
        stops=True,
    ),
    Scenario("ledger", _trusting, _invite, _is_trained, _charged, drive=_invite_until_answered, serves=GOOD),
    Scenario(
        "quarantine release",
        _quarantined,
        _release_from_quarantine,
        _is_released,
        lambda lane: _quarantine_is(lane, 0),
        drive=_repeat_release,
        serves=GOOD,
    ),
)
