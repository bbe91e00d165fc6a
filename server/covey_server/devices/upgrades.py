"""Versions of the agent itself: a wheel becomes a signed target, and a device is ordered to put it on trial.

What the device then runs it says in every report (`agent_version`); a version that was given up arrives as an alarm, `agent-upgrade`.
The targets are the list: there is no table beside it that could say something else.
"""

import io
import re
import secrets
import zipfile
from dataclasses import dataclass
from datetime import datetime, timedelta
from email.parser import HeaderParser

from sqlmodel import Session

from covey_contract.codec import digest_of, encode
from covey_contract.errors import InvalidIdError
from covey_contract.ids import DeviceId, agent_wheel
from covey_contract.limits import MAX_METADATA_BYTES
from covey_contract.messages import Outcome, Reply, UpgradeAgent
from covey_contract.topics import Channel, device_topic
from covey_server import outbox
from covey_server.audit import service as audit
from covey_server.clock import to_millis
from covey_server.devices import service
from covey_server.errors import ConflictError, InvalidInputError, NotFoundError
from covey_server.parts import Director, Repository
from covey_server.triggers import service as triggers

_WITHIN = timedelta(days=7)  # a device that is away longer is not ordered by surprise
_PREFIX = "upg-"
_TARGET = re.compile(r"agents/covey-([0-9A-Za-z.]+)-py3-none-any\.whl")
_NEEDED = ("covey_agent/cli.py", "covey_contract/__init__.py")


@dataclass(frozen=True, slots=True)
class AgentVersion:
    """One version that devices can be ordered to."""

    version: str
    digest: str


def publish_version(session: Session, wheel: bytes, *, repository: Repository, actor: str) -> AgentVersion:
    """Sign a wheel of covey. The same wheel again changes nothing; another one of a version that is signed already is refused."""
    version = _read_version(wheel)
    found = AgentVersion(version, digest_of(wheel))
    known = {one.version: one.digest for one in list_versions(repository)}
    if known.get(version, found.digest) != found.digest:
        raise ConflictError(f"version {version} is signed already, with the digest {known[version]}; give the new one a version of its own")
    if version not in known:
        repository.add_target(f"agents/{agent_wheel(version)}", wheel)
        audit.record(session, "agent.published", actor=actor, subject=version, detail={"digest": found.digest})
    return found


def list_versions(repository: Repository) -> list[AgentVersion]:
    """Every signed version."""
    matches = [(_TARGET.fullmatch(path), digest) for path, digest in sorted(repository.list_targets().items())]
    return [AgentVersion(match.group(1), digest) for match, digest in matches if match]


def order_upgrade(
    session: Session, device: str, version: str, *, again: bool, repository: Repository, director: Director, actor: str, now: datetime
) -> str:
    """Order a device to put a version on trial; returns the command's id."""
    row = service.get_active_device(session, device)
    found = next((one for one in list_versions(repository) if one.version == version), None)
    if found is None:
        raise NotFoundError("agent version", version)
    command = UpgradeAgent(
        id=f"{_PREFIX}{secrets.token_hex(8)}",
        device=row.id,
        expires_at=to_millis(now + _WITHIN),
        version=version,
        digest=found.digest,
        again=again,
    )
    outbox.publish(session, device_topic(DeviceId(row.id), Channel.COMMAND), encode(director.sign(encode(command))))
    audit.record(session, "agent.upgrade_ordered", actor=actor, subject=row.id, detail={"version": version, "command": command.id})
    return command.id


def take_reply(session: Session, device: str, reply: Reply, *, now: datetime) -> None:
    """A device's answer: an alert if it did not put the version on trial."""
    if reply.id.startswith(_PREFIX) and reply.outcome in {Outcome.REFUSED, Outcome.FAILED}:
        row = service.get_active_device(session, device)
        triggers.raise_alert(session, "agent_upgrade_refused", detail=reply.reason, device=row.id, now=now)


def _read_version(wheel: bytes) -> str:
    """What the wheel says that it is. Raises InvalidInputError."""
    if not 0 < len(wheel) <= MAX_METADATA_BYTES:
        raise InvalidInputError(f"a wheel of the agent has at most {MAX_METADATA_BYTES} bytes, got {len(wheel)}")
    try:
        with zipfile.ZipFile(io.BytesIO(wheel)) as archive:
            names = archive.namelist()
            info = next((name for name in names if re.fullmatch(r"covey-[^/]+\.dist-info/METADATA", name)), "")
            if not info or not set(_NEEDED) <= set(names):
                raise InvalidInputError("this is no wheel of covey: it holds no covey_agent or does not say what it is")
            if archive.getinfo(info).file_size > MAX_METADATA_BYTES:
                raise InvalidInputError("the wheel's METADATA is too long")
            metadata = HeaderParser().parsestr(archive.read(info).decode("utf-8", "replace"))
        version = str(metadata["Version"] or "")
        agent_wheel(version)
    except (zipfile.BadZipFile, InvalidIdError) as exc:
        raise InvalidInputError(f"this is no wheel of covey: {exc}") from exc
    return version
