"""The overview: the whole fleet on one page."""

from dataclasses import dataclass

from sqlalchemy import func
from sqlmodel import Session, col, select

from covey_server.console.queries.activity import AlertPage, AuditView, list_alerts, list_audit
from covey_server.console.queries.rollouts import RolloutLine, list_rollouts
from covey_server.console.queries.runs import RunLine, list_runs
from covey_server.devices.models import Device, DevicePresence, DeviceState
from covey_server.federation.models import Run, RunState
from covey_server.rollouts.models import RolloutState

_OPEN = (RolloutState.RUNNING, RolloutState.PAUSED)


@dataclass(frozen=True, slots=True)
class Serving:
    """How many devices serve one model version."""

    release: str
    key: str  # model:version, for the filter of the devices page
    devices: int


@dataclass(frozen=True, slots=True)
class FleetView:
    """The overview."""

    online: int
    offline: int
    never: int
    revoked: int
    partners: int
    servings: tuple[Serving, ...]
    idle: int  # devices that serve nothing
    rollouts: tuple[RolloutLine, ...]  # open ones, else the newest
    open_rollouts: int
    run: RunLine | None  # the running one, else the newest
    alerts: AlertPage
    recent: tuple[AuditView, ...]

    @property
    def total(self) -> int:
        """Devices that belong to the fleet."""
        return self.online + self.offline + self.never


def get_fleet(session: Session) -> FleetView:
    """The overview's content."""
    counts = dict(
        session.exec(select(Device.presence, func.count()).where(Device.state == DeviceState.ACTIVE).group_by(col(Device.presence))).all()
    )
    open_rollouts = list_rollouts(session, states=_OPEN).lines
    servings, idle = _servings(session)
    return FleetView(
        online=counts.get(DevicePresence.ONLINE, 0),
        offline=counts.get(DevicePresence.OFFLINE, 0),
        never=counts.get(DevicePresence.NEVER, 0),
        revoked=_count(session, Device.state == DeviceState.REVOKED),
        partners=_count(session, Device.profile == "partner", Device.state == DeviceState.ACTIVE),
        servings=servings,
        idle=idle,
        rollouts=(open_rollouts or list_rollouts(session).lines)[:3],
        open_rollouts=len(open_rollouts),
        run=_run(session),
        alerts=list_alerts(session, only_open=True, limit=5),
        recent=list_audit(session, limit=8).lines,
    )


def _servings(session: Session) -> tuple[tuple[Serving, ...], int]:
    query = (
        select(Device.serving_model, Device.serving_version, func.count())
        .where(Device.state == DeviceState.ACTIVE, Device.profile == "device")
        .group_by(col(Device.serving_model), col(Device.serving_version))
    )
    rows = session.exec(query).all()
    told = [Serving(f"{model} v{version}", f"{model}:{version}", count) for model, version, count in rows if model]
    return tuple(sorted(told, key=lambda each: (-each.devices, each.release))), sum(count for model, _, count in rows if not model)


def _run(session: Session) -> RunLine | None:
    running = session.exec(
        select(Run.id).where(col(Run.state).in_((RunState.RUNNING, RunState.INVITING))).order_by(col(Run.created_at).desc()).limit(1)
    ).first()
    newest = list_runs(session, limit=5).lines
    return next((line for line in newest if line.id == running), newest[0] if newest else None)


def _count(session: Session, *conditions: bool) -> int:
    return session.exec(select(func.count()).select_from(Device).where(*conditions)).one()
