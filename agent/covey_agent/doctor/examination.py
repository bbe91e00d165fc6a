"""The list of checks, in the order in which a person would look: files, settings, identity, time, network, machine, agent."""

import logging
import time
from collections.abc import Callable, Iterator

import msgspec

from covey_agent.doctor import clock, disk, machine, network, own_files, service
from covey_agent.doctor.case import Case
from covey_agent.doctor.finding import Finding, Level, problem

logger = logging.getLogger(__name__)
Check = Callable[[Case], Finding]

LOCAL: dict[str, Check] = {
    "state directory": disk.check_state_directory,
    "owners": disk.check_owners,
    "file system": disk.check_file_system,
    "room": disk.check_room,
    "inodes": disk.check_inodes,
    "database": disk.check_database,
    "model files": disk.check_models,
    "settings": own_files.check_settings,
    "datasets": own_files.check_datasets,
    "health hook": own_files.check_health_hook,
    "identity": own_files.check_identity,
    "keys": own_files.check_keys,
    "certificate": own_files.check_certificate,
    "trust": own_files.check_trust,
    "clock": clock.check_clock,
    "clock source": clock.check_synchronisation,
}
NETWORK: dict[str, Check] = {
    "names": network.check_names,
    "broker port": network.check_broker_port,
    "broker login": network.check_login,
    "server port": network.check_server_port,
    "server": network.check_server,
    "clock difference": network.check_clock_difference,
}
MACHINE: dict[str, Check] = {
    "runtimes": machine.check_runtimes,
    "memory": machine.check_memory,
    "killed for memory": machine.check_oom_kills,
    "temperature": machine.check_temperature,
    "power": machine.check_power,
    "open files": machine.check_open_files,
}
AGENT: dict[str, Check] = {
    "agent": service.check_running,
    "service": service.check_unit,
    "connection": service.check_connection,
    "local API": service.check_local_api,
    "deployment": service.check_deployment,
    "readings": service.check_readings,
}
CHECKS = LOCAL | NETWORK | MACHINE | AGENT


class Examined(msgspec.Struct, frozen=True):
    """One line of the report."""

    check: str
    level: Level
    found: str
    advice: str
    seconds: float


def examine(case: Case, *, offline: bool = False) -> Iterator[Examined]:
    """Every check in turn; without those of the network if `offline`."""
    for name, check in CHECKS.items():
        if offline and name in NETWORK:
            continue
        begin = time.monotonic()
        finding = _run(check, case)
        yield Examined(name, finding.level, finding.found, finding.advice, round(time.monotonic() - begin, 3))


def _run(check: Check, case: Case) -> Finding:
    try:
        return check(case)
    except Exception as exc:  # the loop's top: one check that fails must not hide what the others find
        logger.debug("a check failed", exc_info=True)
        return problem(
            f"this could not be looked at: {type(exc).__name__}: {exc}", "run the doctor as the agent's user; if it stays, report it"
        )
