"""Checks of what enrolment and the device's owner wrote: settings, data sets, health hook, keys and certificates."""

import os
import shlex
import shutil
import ssl
from pathlib import Path

import msgspec

from covey_agent.adapters.leaving import read_left
from covey_agent.doctor.case import Case
from covey_agent.doctor.finding import Finding, ok, problem, skipped, warning
from covey_agent.errors import CoveyAgentError
from covey_agent.identity import load_identity
from covey_agent.settings import FILE_NAME, load_consent, load_settings


def check_settings(case: Case) -> Finding:
    """`agent.toml` and the environment can be meant."""
    try:
        load_settings(case.state_dir, case.environment)
    except CoveyAgentError as exc:
        return problem(str(exc), f"correct it in {case.state_dir / FILE_NAME}; `covey-agent config` lists every setting with its meaning")
    there = (case.state_dir / FILE_NAME).exists()
    return ok(f"{FILE_NAME} is in order" if there else f"no {FILE_NAME}: defaults")


def check_datasets(case: Case) -> Finding:
    """What `[datasets]` names is there."""
    try:
        datasets = load_consent(case.state_dir).datasets
    except CoveyAgentError:
        return skipped("the settings cannot be read")
    missing = [f"{name} at {path}" for name, path in datasets.items() if not os.access(path, os.R_OK)]
    if missing:
        return problem(
            f"not readable by this user: {', '.join(missing)}", "correct [datasets] in agent.toml: covey-agent data add NAME PATH"
        )
    return ok(f"{len(datasets)} readable") if datasets else skipped("none are named")


def check_health_hook(case: Case) -> Finding:
    """`[health] command` can be run."""
    command = case.settings.health.command
    if not command:
        return skipped("none is set")
    try:
        program = shlex.split(command)[0]
    except (ValueError, IndexError) as exc:
        return problem(f"health.command cannot be read: {exc}", "write it as in a shell, with balanced quotes")
    if shutil.which(program) is None:
        return problem(
            f"{program} is no executable of this user's: a hook that cannot be run counts as failed in every probation",
            f"chmod +x {program}, or correct [health] command",
        )
    return ok(command)


def check_identity(case: Case) -> Finding:
    """Enrolled, and not retired."""
    left = read_left(case.state_dir)
    if left is not None:
        return problem("this device was decommissioned", "to bring it back, let it be invited again: covey-agent enroll --token TOKEN")
    try:
        identity = load_identity(case.state_dir)
    except CoveyAgentError as exc:
        return problem(str(exc), "ask an operator for an invitation (covey device invite NAME), then: covey-agent enroll --token TOKEN")
    return ok(f"{identity.file.device} ({identity.file.profile.value}) of {identity.file.url}")


def check_keys(case: Case) -> Finding:
    """Key and certificate are there, belong together, and nobody else reads the key."""
    if case.identity is None:
        return skipped("not enrolled")
    address = case.identity.broker
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.load_verify_locations(address.ca_file)
        context.load_cert_chain(address.cert_file, address.key_file)
    except (OSError, ssl.SSLError) as exc:
        return problem(
            f"the keys in {case.identity.folder} cannot be used: {exc}",
            "have the device invited again, then: covey-agent enroll --replace --token TOKEN (models and readings stay)",
        )
    key = Path(address.key_file)
    if key.stat().st_mode & 0o077:
        return problem(f"others may read {key}", f"chmod 600 {key}; if somebody may have copied it: covey-agent identity renew")
    return ok("key and certificate belong together")


def check_certificate(case: Case) -> Finding:
    """It is valid, and is renewed in time."""
    validity = case.identity.validity() if case.identity else None
    if validity is None:
        return skipped("not enrolled" if case.identity is None else "the certificate cannot be read")
    now, settings = case.now_ms(), case.settings.identity
    days = validity.days_left(now)
    if now < validity.not_before:
        return problem("the certificate is not valid yet", "the clock of this machine is behind: set it")
    if days <= 0:
        by_itself = settings.on_expiry == "re-enrol"
        return problem(
            f"the certificate has expired {-days:.1f} days ago",
            "let the agent reach the server's HTTPS address: it renews by its key"
            if by_itself
            else "renew it now, as identity.on_expiry is wait: covey-agent identity renew",
        )
    if days < settings.alarm_days and now > validity.renew_at(0.0):
        return warning(
            f"{days:.1f} days left and not renewed yet", "covey-agent identity renew, and look at the agent's log for the reason"
        )
    if case.identity is not None and not case.identity.current.proven:
        return warning(
            "a new certificate is installed and has not connected yet; the one before is tried in turn",
            "wait for a connection to the broker",
        )
    return ok(f"{days:.0f} days left")


class _RootDocument(msgspec.Struct, frozen=True):
    expires: str
    version: int


class _RootFile(msgspec.Struct, frozen=True):
    signed: _RootDocument


def check_trust(case: Case) -> Finding:
    """There is a root to verify releases by."""
    if case.identity is None:
        return skipped("not enrolled")
    path = case.state_dir / "tuf" / "root.json"
    try:
        root = msgspec.json.decode(path.read_bytes(), type=_RootFile).signed
    except (OSError, msgspec.DecodeError) as exc:
        return problem(
            f"{path} cannot be read: {exc}: no release can be verified",
            "have the device invited again, then: covey-agent enroll --replace --token TOKEN",
        )
    return ok(f"root {root.version}, until {root.expires[:10]}")
