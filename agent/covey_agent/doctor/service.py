"""Checks of the running agent: does it run, is it connected, does it serve, is something stuck."""

import shutil
import subprocess

from covey_agent.adapters.sockets import SOCKET_NAME
from covey_agent.adapters.store_sqlite import DATABASE_NAME, open_read_only
from covey_agent.client import Client, ClientError
from covey_agent.commands.output import show_time
from covey_agent.core.machine import serving_slot
from covey_agent.doctor.case import Case
from covey_agent.doctor.finding import Finding, ok, problem, skipped, warning
from covey_agent.errors import CoveyAgentError
from covey_contract.messages import DeploymentState

UNIT = "covey-agent.service"
STUCK_MS = 3_600_000
NEARLY_FULL = 0.8
NOT_RUNNING = "the agent does not run"
_RESTING = {DeploymentState.IDLE, DeploymentState.COMMITTED, DeploymentState.ROLLED_BACK}


def check_running(case: Case) -> Finding:
    """The daemon works on this state directory."""
    if case.pid is None:
        return problem(
            NOT_RUNNING, f"sudo systemctl start {UNIT}, or covey-agent run in the foreground; covey-agent logs tells why it ended"
        )
    if case.live is None:
        return warning(f"process {case.pid} holds the state directory and has not told how it is", "wait a moment; then restart it")
    return ok(f"process {case.pid}")


def check_unit(case: Case) -> Finding:
    """systemd starts it with the machine."""
    systemctl = shutil.which("systemctl")
    if not (case.root / "run/systemd/system").is_dir() or systemctl is None:
        return skipped("this machine does not run systemd")
    done = subprocess.run([systemctl, "is-enabled", UNIT], capture_output=True, text=True, timeout=case.timeout_s, check=False)
    state = done.stdout.strip() or done.stderr.strip() or "unknown"
    if state.startswith("enabled"):
        return ok(f"{UNIT} is enabled")
    return warning(f"{UNIT} is {state}: the agent does not start with the machine", "sudo covey-agent install")


def check_connection(case: Case) -> Finding:
    """The running agent is connected."""
    if case.pid is None or case.live is None:
        return skipped(NOT_RUNNING)
    if not case.live.connected:
        since = f" since {show_time(case.live.since)}" if case.live.since else ""
        return problem(f"not connected{since}: {case.live.connection or 'no reason yet'}", "the checks of the network tell where it ends")
    return ok(f"since {show_time(case.live.since)}")


def check_local_api(case: Case) -> Finding:
    """The model in service answers on this machine."""
    if case.pid is None or case.is_participant_only:
        return skipped(NOT_RUNNING if case.pid is None else "a partner's agent serves nothing")
    if case.machine is None or not serving_slot(case.machine):
        return skipped("no model is in service")
    path = case.state_dir / "run" / SOCKET_NAME
    try:
        with Client(path, timeout_s=case.timeout_s) as client:
            model = client.model()
    except (ClientError, OSError) as exc:
        return problem(
            f"{path} does not answer: {exc}", "covey-agent logs; if the worker ends again and again, the agent rolls back by itself"
        )
    return ok(f"{model.get('model', '?')} {model.get('version', '?')} answers")


def check_deployment(case: Case) -> Finding:
    """Nothing is stuck, and nothing has failed here."""
    if case.machine is None:
        return skipped("the agent has never run here")
    machine, deployment = case.machine, case.machine.deployment
    if deployment is not None and machine.state not in _RESTING and case.now_ms() - deployment.changed_at > STUCK_MS:
        return warning(
            f"{deployment.model} {deployment.version} is in {machine.state.value} since {show_time(deployment.changed_at)}",
            "look at room on the disk and at the connection; covey-agent logs tells what it waits for",
        )
    if machine.quarantine:
        last = machine.quarantine[-1]
        return warning(
            f"{len(machine.quarantine)} digests failed here and are not tried again, last {last.digest[:12]}: {last.reason}",
            "covey-agent quarantine lists them; an operator lets them be tried again: covey device release-quarantine",
        )
    return ok(machine.state.value)


def check_readings(case: Case) -> Finding:
    """The buffer has room, and nothing was lost."""
    path = case.state_dir / DATABASE_NAME
    if not path.exists():
        return skipped("the agent has never run here")
    try:
        database = open_read_only(path)
        try:
            (count, size), (lost,) = (
                database.query("SELECT COUNT(*), COALESCE(SUM(LENGTH(data)), 0) FROM reading")[0],
                database.query("SELECT COALESCE(SUM(count), 0) FROM lost")[0],
            )
        finally:
            database.close()
    except CoveyAgentError as exc:
        return skipped(str(exc))
    most = case.settings.readings.max_mb * (1 << 20)
    text = f"{count} wait on disk ({int(str(size)) / (1 << 20):.1f} of {case.settings.readings.max_mb:g} MiB)"
    if lost:
        return warning(f"{text}; {lost} were lost", "the buffer was full or too old: raise readings.max_mb, or restore the connection")
    if int(str(size)) > NEARLY_FULL * most:
        return warning(f"{text}: the least important are dropped soon", "restore the connection, or raise readings.max_mb")
    return ok(text)
