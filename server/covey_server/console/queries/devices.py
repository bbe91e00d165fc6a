"""The devices page: a filtered list in pages, by id."""

from dataclasses import dataclass
from datetime import datetime
from typing import TypeVar

from sqlalchemy import String, cast, func, or_
from sqlmodel import Session, col, select
from sqlmodel.sql.expression import SelectOfScalar

from covey_server.devices.models import Device, DevicePresence, DeviceState, Invitation

T = TypeVar("T")
PAGE_SIZE = 50


@dataclass(frozen=True, slots=True)
class DeviceFilter:
    """What the list is narrowed to; an empty field narrows nothing."""

    q: str = ""  # part of an id, a label or a variant
    presence: str = ""
    state: str = ""
    profile: str = ""
    serving: str = ""  # model:version

    @property
    def is_empty(self) -> bool:
        """Whether every device is wanted."""
        return not (self.q or self.presence or self.state or self.profile or self.serving)


@dataclass(frozen=True, slots=True)
class DeviceLine:
    """One device in a list."""

    id: str
    profile: str
    labels: tuple[tuple[str, str], ...]
    presence: str
    is_revoked: bool
    serving: str
    variant: str
    deployment_state: str
    training: str
    last_seen_at: datetime | None


@dataclass(frozen=True, slots=True)
class DevicePage:
    """One page of the list."""

    lines: tuple[DeviceLine, ...]
    total: int
    next: str  # id behind which the next page begins, "" at the end
    servings: tuple[str, ...]  # what can be filtered by
    states: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class InvitationLine:
    """An invitation that waits to be used."""

    device_id: str
    profile: str
    created_by: str
    expires_at: datetime


def list_devices(session: Session, wanted: DeviceFilter, *, after: str = "") -> DevicePage:
    """Devices by id that pass the filter."""
    total = session.exec(_narrow(select(func.count()).select_from(Device), wanted)).one()
    query = _narrow(select(Device), wanted).where(col(Device.id) > after).order_by(col(Device.id)).limit(PAGE_SIZE + 1)
    rows = session.exec(query).all()
    shown = rows[:PAGE_SIZE]
    return DevicePage(
        lines=tuple(device_line(row) for row in shown),
        total=total,
        next=shown[-1].id if len(rows) > PAGE_SIZE else "",
        servings=_servings(session),
        states=tuple(sorted(session.exec(select(Device.deployment_state).distinct()).all())),
    )


def list_open_invitations(session: Session, *, now: datetime) -> tuple[InvitationLine, ...]:
    """Invitations that can still be used."""
    query = (
        select(Invitation)
        .where(col(Invitation.used_at).is_(None), col(Invitation.withdrawn_at).is_(None), col(Invitation.expires_at) > now)
        .order_by(col(Invitation.created_at).desc())
        .limit(20)
    )
    return tuple(InvitationLine(row.device_id, row.profile, row.created_by, row.expires_at) for row in session.exec(query))


def device_line(row: Device) -> DeviceLine:
    """A device as lists show it."""
    return DeviceLine(
        id=row.id,
        profile=row.profile,
        labels=tuple(sorted((str(key), str(value)) for key, value in row.labels.items())),
        presence=row.presence.value,
        is_revoked=row.state is DeviceState.REVOKED,
        serving=f"{row.serving_model} v{row.serving_version}" if row.serving_model else "",
        variant=row.serving_variant,
        deployment_state=row.deployment_state,
        training=row.training,
        last_seen_at=row.last_seen_at,
    )


def _narrow(query: SelectOfScalar[T], wanted: DeviceFilter) -> SelectOfScalar[T]:
    if wanted.q:
        part = "%" + wanted.q.lower().replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_") + "%"
        text = (col(Device.id), func.lower(cast(Device.labels, String)), col(Device.serving_variant))
        query = query.where(or_(*(column.like(part, escape="\\") for column in text)))
    if wanted.presence in {presence.value for presence in DevicePresence}:
        query = query.where(col(Device.presence) == DevicePresence(wanted.presence), col(Device.state) == DeviceState.ACTIVE)
    if wanted.presence == DeviceState.REVOKED.value:
        query = query.where(col(Device.state) == DeviceState.REVOKED)
    if wanted.state:
        query = query.where(Device.deployment_state == wanted.state)
    if wanted.profile:
        query = query.where(Device.profile == wanted.profile)
    if wanted.serving:
        model, _, version = wanted.serving.rpartition(":")
        query = query.where(Device.serving_model == model, Device.serving_version == (int(version) if version.isdecimal() else -1))
    return query


def _servings(session: Session) -> tuple[str, ...]:
    query = select(Device.serving_model, Device.serving_version).where(Device.serving_model != "").distinct()
    return tuple(f"{model}:{version}" for model, version in sorted(session.exec(query).all()))
