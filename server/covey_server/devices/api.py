"""REST: devices and invitations."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Annotated

from fastapi import APIRouter, File, Path, Query, Request, Response, UploadFile

from covey_contract.limits import MAX_METADATA_BYTES
from covey_contract.messages import Profile
from covey_server.access.guard import Admin, Operator, Viewer
from covey_server.access.idempotency import Idempotent
from covey_server.api_deps import Page, PageQuery, PartsDep, ReadSession, WriteSession, check_if_match, problems, with_etag
from covey_server.devices import clones, farewell, service, upgrades
from covey_server.devices.certificates import broker_rights
from covey_server.devices.models import Device, DevicePresence, DeviceState
from covey_server.devices.views import (
    AgentUpgrade,
    AgentVersionView,
    CommandView,
    DeviceDetail,
    DeviceView,
    Farewell,
    InvitationView,
    LabelChange,
    NewInvitation,
    NewInvitationView,
)
from covey_server.errors import InvalidInputError

router = APIRouter(prefix="/api/v1", tags=["devices"])
DevicePath = Annotated[str, Path(description="device id", max_length=200)]


@router.get("/devices", summary="List devices", responses=problems(422))
def list_devices(
    _: Viewer,
    session: ReadSession,
    page: PageQuery,
    label: Annotated[list[str] | None, Query(description="name=value; repeat it to narrow the list", max_length=32)] = None,
    presence: DevicePresence | None = None,
    state: DeviceState | None = None,
    profile: Profile | None = None,
    text: Annotated[str, Query(description="part of the id or of the served model's name", max_length=64)] = "",
) -> Page[DeviceView]:
    """Devices in the order of their ids, revoked ones included unless `state` says otherwise."""
    (after,) = page.after(1) or ("",)
    rows = service.list_devices(
        session,
        after=after,
        limit=page.limit + 1,
        labels=_labels(label or ()),
        presence=presence,
        state=state,
        profile=profile,
        text=text,
    )
    return Page[DeviceView].cut([DeviceView.model_validate(row) for row in rows], page, key=lambda view: (view.id,))


@router.get("/devices/{device}", response_model=DeviceDetail, summary="One device", responses=problems(404, 422))
def get_device(device: DevicePath, request: Request, _: Viewer, session: ReadSession) -> Response:
    """A device with its full reported state and its quarantine."""
    row = service.get_device(session, device)
    return with_etag(request, DeviceDetail.of(row, list(service.list_quarantine(session, row.id)), clones.list_boots(session, row.id)))


@router.patch("/devices/{device}", response_model=DeviceDetail, summary="Change a device's labels", responses=problems(404, 412, 422))
def set_labels(device: DevicePath, body: LabelChange, request: Request, actor: Operator, session: WriteSession) -> Response:
    """Set, change or remove labels. With If-Match, only if the device is still as you read it."""
    before: Device = service.get_active_device(session, device)
    quarantine = list(service.list_quarantine(session, before.id))
    boots = clones.list_boots(session, before.id)
    check_if_match(request, DeviceDetail.of(before, quarantine, boots))
    row = service.set_labels(session, device, body.labels, actor=actor.name)
    return with_etag(request, DeviceDetail.of(row, quarantine, boots))


@router.delete("/devices/{device}", summary="Revoke a device", responses=problems(404, 422, 503))
def revoke_device(device: DevicePath, actor: Admin, parts: PartsDep) -> DeviceView:
    """Take a device out of the fleet: its broker rights end and its live connection drops at once. Its history stays."""
    with parts.db.begin() as session:
        view = DeviceView.model_validate(service.revoke_device(session, device, actor=actor.name, now=parts.clock()))
    parts.permissions.apply(broker_rights(parts.db))
    return view


@router.post("/devices/{device}/rotations", status_code=202, summary="Renew a device's key now", responses=problems(403, 404, 422))
def rotate_certificate(device: DevicePath, actor: Operator, parts: PartsDep, session: WriteSession) -> CommandView:
    """Ask the device for a fresh key. `certificate_serial` changes; the old certificate ends with the first connection by the new one."""
    command = farewell.rotate_certificate(session, device, director=parts.director, actor=actor.name, now=parts.clock())
    return CommandView(command=command)


@router.post("/devices/{device}/decommission", status_code=202, summary="Retire a device for good", responses=problems(403, 404, 422))
def decommission_device(device: DevicePath, body: Farewell, actor: Admin, parts: PartsDep, session: WriteSession) -> DeviceView:
    """Ask the device to stop and, if its own policy allows it, to wipe itself. It is revoked with its answer or at the deadline."""
    row = farewell.decommission_device(
        session,
        device,
        wipe=body.wipe,
        wait=timedelta(hours=body.wait_hours),
        director=parts.director,
        actor=actor.name,
        now=parts.clock(),
    )
    return DeviceView.model_validate(row)


@router.post("/devices/{device}/upgrades", status_code=202, summary="Upgrade a device's agent", responses=problems(403, 404, 422))
def order_upgrade(device: DevicePath, body: AgentUpgrade, actor: Operator, parts: PartsDep, session: WriteSession) -> CommandView:
    """Order a signed version of the agent. The device tries it, and goes back by itself; `agent_version` tells what it runs."""
    command = upgrades.order_upgrade(
        session,
        device,
        body.version,
        again=body.again,
        repository=parts.repository,
        director=parts.director,
        actor=actor.name,
        now=parts.clock(),
    )
    return CommandView(command=command)


@router.get("/agent-versions", summary="Versions of the agent", responses=problems())
def list_agent_versions(_: Viewer, parts: PartsDep) -> list[AgentVersionView]:
    """Every version that devices can be ordered to."""
    return [AgentVersionView.model_validate(one) for one in upgrades.list_versions(parts.repository)]


@router.post("/agent-versions", status_code=201, summary="Sign a version of the agent", responses=problems(403, 409, 422))
def publish_agent_version(
    wheel: Annotated[UploadFile, File(description="covey-VERSION-py3-none-any.whl")], actor: Admin, parts: PartsDep, session: WriteSession
) -> AgentVersionView:
    """Make a wheel of covey a signed target. Only administrators: it is code that devices will run."""
    data = wheel.file.read(MAX_METADATA_BYTES + 1)
    return AgentVersionView.model_validate(upgrades.publish_version(session, data, repository=parts.repository, actor=actor.name))


@router.get("/invitations", summary="List invitations", responses=problems(422))
def list_invitations(
    _: Operator, session: ReadSession, page: PageQuery, device: Annotated[str | None, Query(max_length=64)] = None
) -> Page[InvitationView]:
    """All invitations, used and withdrawn ones included, without their secrets."""
    (after,) = page.after(1) or ("",)
    rows = service.list_invitations(session, after=after, limit=page.limit + 1, device=device)
    return Page[InvitationView].cut([InvitationView.model_validate(row) for row in rows], page, key=lambda view: (view.id,))


@router.post(
    "/invitations", status_code=201, response_model=NewInvitationView, summary="Invite a device or partner", responses=problems(409, 422)
)
def invite_device(body: NewInvitation, actor: Operator, parts: PartsDep, session: WriteSession, once: Idempotent) -> Response:
    """Make a one-time token with which one device of this id may enrol. An older open invitation for the id ends."""

    def act() -> NewInvitationView:
        invitation, token = service.invite_device(
            session,
            body.device,
            profile=body.profile,
            labels=body.labels,
            ttl=timedelta(hours=body.ttl_hours or parts.settings.pki.invitation_hours),
            actor=actor.name,
            now=once.now,
            edge_url=parts.settings.edge_url,
            fingerprint=parts.authority.fingerprint(),
        )
        return NewInvitationView.of(invitation, token)

    return once.answer(session, act, stored=lambda view: view.model_copy(update={"token": None}))


@router.delete("/invitations/{invitation}", summary="Withdraw an invitation", responses=problems(404, 409))
def withdraw_invitation(
    invitation: Annotated[str, Path(max_length=64)], actor: Operator, parts: PartsDep, session: WriteSession
) -> InvitationView:
    """End an invitation that was not used."""
    return InvitationView.model_validate(service.withdraw_invitation(session, invitation, actor=actor.name, now=parts.clock()))


def _labels(pairs: Sequence[str]) -> dict[str, str]:
    labels: dict[str, str] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise InvalidInputError(f"expected label=name=value, got {pair!r:.80}")
        labels[name] = value
    return labels
