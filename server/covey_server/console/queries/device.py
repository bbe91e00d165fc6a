"""One device's page: what it is, what it holds, what it does and what happened to it."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import msgspec
from sqlmodel import Session, col, select

from covey_contract.messages import Capabilities, DeploymentReport, Reported
from covey_server.audit.models import AuditEvent
from covey_server.clock import from_millis
from covey_server.console.queries.devices import DeviceLine, device_line
from covey_server.console.queries.steps import Step, deployment_steps
from covey_server.devices.models import Device, QuarantineEntry
from covey_server.errors import NotFoundError
from covey_server.rollouts.models import RolloutDevice
from covey_server.telemetry.models import ReadingRow, ReadingStream
from covey_server.triggers.models import Alert

_TIMELINE = 40


@dataclass(frozen=True, slots=True)
class SlotView:
    """One of a device's two slots."""

    slot: str
    release: str  # "" if empty
    variant: str
    artifact: str
    serves: bool
    is_quarantined: bool = False


@dataclass(frozen=True, slots=True)
class DeploymentView:
    """The latest deployment."""

    id: str
    rollout_id: str  # "" if none of this server
    release: str
    state: str
    reason: str
    variant: str
    variant_reason: str
    chunks_done: int
    chunks_total: int
    bytes_received: int
    rollback_ms: float | None
    started_at: datetime | None
    changed_at: datetime | None
    steps: tuple[Step, ...]


@dataclass(frozen=True, slots=True)
class QuarantineView:
    """A digest that failed on the device."""

    digest: str
    reason: str
    at: datetime
    released_at: datetime | None


@dataclass(frozen=True, slots=True)
class StreamView:
    """How readings of one epoch arrived."""

    epoch: str
    upto: int
    stored: int
    duplicates: int
    lost: int
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class Happening:
    """One line of the timeline."""

    at: datetime
    kind: str
    what: str
    detail: str


@dataclass(frozen=True, slots=True)
class DeviceView:
    """Everything on the page but the charts."""

    line: DeviceLine
    enrolled_at: datetime
    presence_at: datetime | None
    certificate_serial: str
    certificate_expires_at: datetime | None
    agent_version: str
    boot: str
    supernode_id: str
    reported_generation: int
    desired_generation: int
    policy_hash: str
    capabilities: Capabilities
    slots: tuple[SlotView, ...]
    deployment: DeploymentView | None
    quarantine: tuple[QuarantineView, ...]
    streams: tuple[StreamView, ...]
    timeline: tuple[Happening, ...]


def get_device(session: Session, device_id: str) -> DeviceView:
    """One device. Raises NotFoundError."""
    row = session.get(Device, device_id)
    if row is None:
        raise NotFoundError("device", device_id)
    reported = _reported(row.reported)
    return DeviceView(
        line=device_line(row),
        enrolled_at=row.enrolled_at,
        presence_at=row.presence_at,
        certificate_serial=row.certificate_serial,
        certificate_expires_at=row.certificate_expires_at,
        agent_version=row.agent_version,
        boot=row.boot,
        supernode_id=row.supernode_id,
        reported_generation=row.reported_generation,
        desired_generation=reported.desired_generation if reported else 0,
        policy_hash=reported.policy_hash if reported else "",
        capabilities=reported.capabilities if reported else Capabilities(),
        slots=_slots(row, reported),
        deployment=_deployment(session, device_id, reported.deployment) if reported and reported.deployment else None,
        quarantine=_quarantine(session, device_id),
        streams=_streams(session, device_id),
        timeline=_timeline(session, device_id),
    )


def _reported(stored: dict[str, Any]) -> Reported | None:
    if not stored:
        return None
    try:
        return msgspec.convert({"type": "reported", **stored}, Reported)
    except msgspec.ValidationError:
        return None  # written by another version of the contract: the columns still say what serves


def _slots(row: Device, reported: Reported | None) -> tuple[SlotView, ...]:
    held = {report.slot: report for report in reported.slots} if reported else {}
    quarantined = {entry.digest for entry in reported.quarantine} if reported else set()
    views = []
    for slot in ("A", "B"):
        report = held.get(slot)
        serves = row.active_slot == slot
        if report is None or not report.artifact:
            views.append(SlotView(slot, "", "", "", serves))
        else:
            views.append(
                SlotView(slot, f"{report.model} v{report.version}", report.variant, report.artifact, serves, report.artifact in quarantined)
            )
    return tuple(views)


def _deployment(session: Session, device_id: str, report: DeploymentReport) -> DeploymentView:
    part = session.exec(select(RolloutDevice).where(RolloutDevice.deployment_id == report.deployment)).first()
    return DeploymentView(
        id=report.deployment,
        rollout_id=part.rollout_id if part else "",
        release=f"{report.model} v{report.version}",
        state=report.state.value,
        reason=report.reason,
        variant=report.variant,
        variant_reason=report.variant_reason,
        chunks_done=report.chunks_done,
        chunks_total=report.chunks_total,
        bytes_received=report.bytes_received,
        rollback_ms=report.rollback_ms,
        started_at=from_millis(report.started_at) if report.started_at else None,
        changed_at=from_millis(report.changed_at) if report.changed_at else None,
        steps=deployment_steps(report.state, passed=_passed(session, device_id, report)),
    )


def _passed(session: Session, device_id: str, report: DeploymentReport) -> dict[str, datetime]:
    query = (
        select(ReadingRow)
        .where(ReadingRow.device_id == device_id, ReadingRow.kind == "deployment", col(ReadingRow.at) >= from_millis(report.started_at))
        .order_by(col(ReadingRow.at))
        .limit(100)
    )
    told = [row for row in session.exec(query) if row.values.get("deployment") == report.deployment]
    return {str(row.values.get("state", "")): row.at for row in told}


def _quarantine(session: Session, device_id: str) -> tuple[QuarantineView, ...]:
    query = select(QuarantineEntry).where(QuarantineEntry.device_id == device_id).order_by(col(QuarantineEntry.at).desc())
    return tuple(QuarantineView(row.digest, row.reason, row.at, row.released_at) for row in session.exec(query))


def _streams(session: Session, device_id: str) -> tuple[StreamView, ...]:
    query = select(ReadingStream).where(ReadingStream.device_id == device_id).order_by(col(ReadingStream.updated_at).desc()).limit(5)
    return tuple(
        StreamView(row.epoch, row.upto, row.stored, row.duplicates, sum(row.lost.values()), row.updated_at) for row in session.exec(query)
    )


def _timeline(session: Session, device_id: str) -> tuple[Happening, ...]:
    audits = select(AuditEvent).where(AuditEvent.subject == device_id).order_by(col(AuditEvent.id).desc()).limit(_TIMELINE)
    alerts = select(Alert).where(Alert.device_id == device_id).order_by(col(Alert.id).desc()).limit(_TIMELINE)
    readings = (
        select(ReadingRow)
        .where(ReadingRow.device_id == device_id, col(ReadingRow.kind).in_(("deployment", "alarm", "training")))
        .order_by(col(ReadingRow.at).desc(), col(ReadingRow.id).desc())
        .limit(_TIMELINE)
    )
    found = [Happening(row.at, "audit", row.action, f"by {row.actor}") for row in session.exec(audits)]
    found += [Happening(row.at, row.severity.value, row.what, row.detail) for row in session.exec(alerts)]
    found += [_told(row) for row in session.exec(readings)]
    return tuple(sorted(found, key=lambda item: item.at, reverse=True)[:_TIMELINE])


def _told(row: ReadingRow) -> Happening:
    values = {key: value for key, value in row.values.items() if value not in ("", None)}
    if row.kind == "deployment":
        values.pop("deployment", None)  # an id that says nothing here
        state = str(values.pop("state", "deployment"))
        release = f"{values.pop('model', 'deployment')} v{values.pop('version', '?')}"
        return Happening(row.at, state, release, _text(values))
    if row.kind == "alarm":
        return Happening(row.at, "warning", str(values.pop("what", "alarm")), _text(values))
    return Happening(row.at, "training", f"trained round {values.pop('round', '?')}", _text(values))


def _text(values: dict[str, Any]) -> str:
    named = [str(values.pop(key)) for key in ("reason", "detail") if key in values]
    return ", ".join([*named, *(f"{key.replace('_', ' ')} {_value(value)}" for key, value in values.items())])


def _value(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else f"{value!s:.80}"
