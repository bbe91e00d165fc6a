"""One identity in two machines: noticed by what they say, told to operators, and by policy ended.

An agent process has a boot id of its own, and a lock sees to it that one state directory runs one process at a time. So:

| what the server sees | what it means |
|---|---|
| a new boot, report numbers go on | an ordinary restart |
| a new boot, report numbers begin at or below what was reported | its state was put back (a restored image), or there are two of it |
| one reading's number comes with two contents | the same |
| a boot speaks again, later by its own clock, after another boot has spoken | two machines live: a clone |

A message that the broker delivers once more is not "speaks again": its time is one that was heard before. A message that overtook
another on the way looks like two returns (there and back), so a clone is named at the fourth, or at the second if numbers forked as well.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from sqlmodel import Session, col, select

from covey_contract.errors import StaleMessageError
from covey_server.devices import service
from covey_server.devices.models import Device, DeviceBoot, DeviceState
from covey_server.triggers import service as triggers
from covey_server.triggers.models import Severity

KEPT_BOOTS = 20
_RETURNS, _RETURNS_IF_FORKED = 4, 2
_FRESH = timedelta(days=7)  # evidence further apart than this is not one story
_BOTH = "its state was restored from a copy, or two machines have it"


class Finding(StrEnum):
    """What the boots of one device say; the value is the alert's name."""

    NOTHING = "nothing"
    REWOUND = "state_rewound"
    CLONED = "identity_cloned"


@dataclass(frozen=True, slots=True)
class Said:
    """One message as far as it matters here."""

    boot: str
    at: int  # by the device's clock, ms
    generation: int | None = None  # of a report


def note_said(session: Session, row: Device, said: Said, *, now: datetime, on_clone: str) -> Finding:
    """Take note of a message before the device's row takes over its content. Raises StaleMessageError for one of an earlier boot."""
    if not said.boot:
        return Finding.NOTHING  # an agent from before boots were reported
    boots = list_boots(session, row.id)
    entry = next((boot for boot in boots if boot.boot == said.boot), None)
    returned = False
    if entry is None:
        entry = DeviceBoot(device_id=row.id, boot=said.boot, first_at=now, last_at=now)
    elif said.boot != row.boot:
        if said.at <= entry.said_at:
            raise StaleMessageError(f"boot {said.boot} of {row.id} said this before boot {row.boot} spoke")
        returned = True
    others = [boot for boot in boots if boot.boot != said.boot]
    finding = Finding.NOTHING
    if said.generation is not None and entry.generation < 0 and others and said.generation <= _highest(row, others):
        finding, entry.rewound_at = Finding.REWOUND, now
    entry.returns += returned
    if returned and is_clone([entry, *others], now=now):
        finding = Finding.CLONED
    entry.last_at, entry.said_at = now, max(entry.said_at, said.at)
    entry.generation = max(entry.generation, -1 if said.generation is None else said.generation)
    row.boot = said.boot
    session.add_all([entry, row])
    for old in others[KEPT_BOOTS - 1 :]:
        session.delete(old)
    if finding is not Finding.NOTHING:
        _tell(session, row, finding, boot=said.boot, other=others[0].boot, now=now, on_clone=on_clone)
    return finding


def is_clone(boots: Sequence[DeviceBoot], *, now: datetime) -> bool:
    """Whether what is known of a device's boots can only be two machines. Asked when a boot has returned."""
    recent = [boot for boot in boots if now - boot.last_at < _FRESH]
    forked = any(boot.rewound_at is not None and now - boot.rewound_at < _FRESH for boot in recent)
    return sum(boot.returns for boot in recent) >= (_RETURNS_IF_FORKED if forked else _RETURNS)


def note_forked(session: Session, device: str, forked: Sequence[int], *, epoch: str, now: datetime) -> None:
    """Numbers of readings came with a second content. Nothing is lost: the device goes on under a new epoch."""
    row = session.get(Device, device)
    if row is None:
        return
    entry = session.get(DeviceBoot, (device, row.boot))
    if entry is not None:
        entry.rewound_at = now
        session.add(entry)
    detail = f"{len(forked)} readings of epoch {epoch}, the first {forked[0]}, came with two contents (boot {row.boot}): {_BOTH}"
    triggers.raise_alert(session, Finding.REWOUND.value, detail=detail, device=device, subject="readings", now=now)


def list_boots(session: Session, device: str) -> list[DeviceBoot]:
    """The lives of this device's agent that are remembered, the one that spoke last first."""
    return list(session.exec(select(DeviceBoot).where(DeviceBoot.device_id == device).order_by(col(DeviceBoot.last_at).desc())))


def _highest(row: Device, others: Sequence[DeviceBoot]) -> int:
    return max([row.reported_generation, *(boot.generation for boot in others)])


def _tell(session: Session, row: Device, finding: Finding, *, boot: str, other: str, now: datetime, on_clone: str) -> None:
    if finding is Finding.REWOUND:
        detail = f"boot {boot} begins with report numbers that boot {other} has used: {_BOTH}"
        triggers.raise_alert(session, finding.value, detail=detail, device=row.id, now=now)
        return
    row.clone_suspected_at = row.clone_suspected_at or now
    session.add(row)
    detail = f"two machines speak with the identity of {row.id}: boots {' and '.join(sorted((boot, other)))} take turns"
    if on_clone == "revoke" and row.state is DeviceState.ACTIVE:
        service.revoke_device(session, row.id, actor="system:clones", now=now)
        detail += "; it was revoked (pki.on_clone)"
    triggers.raise_alert(session, finding.value, detail=detail, severity=Severity.CRITICAL, device=row.id, now=now)
