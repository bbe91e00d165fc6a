"""Selectors and phases as they come from outside and stand in rows, turned into the values that the rules take."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct
from sqlmodel import Session

from covey_contract.messages import NameField, Profile
from covey_server.devices.models import Device, DeviceState
from covey_server.devices.service import get_device, list_devices
from covey_server.errors import InvalidInputError
from covey_server.rollouts.rules import Phase, check_phases

MAX_DEVICES = 200_000
_PAGE = 500
DEFAULT_PHASES: tuple[Mapping[str, Any], ...] = ({"name": "canary", "count": 1}, {"name": "rest"})


class _PhaseRow(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    name: NameField
    max_failures: Annotated[int, Meta(ge=0)] = 0
    devices: list[str] = []
    count: int | None = None
    percent: float | None = None


def parse_phases(rows: Sequence[Mapping[str, Any]]) -> list[Phase]:
    """Phases from JSON. Raises InvalidInputError."""
    try:
        parsed = [msgspec.convert(dict(row), _PhaseRow) for row in rows]
    except msgspec.ValidationError as exc:
        raise InvalidInputError(f"a phase is not valid: {exc}") from exc
    phases = [Phase(row.name, row.max_failures, tuple(row.devices), row.count, row.percent) for row in parsed]
    fault = check_phases(phases)
    if fault:
        raise InvalidInputError(fault)
    return phases


def expand_selector(session: Session, selector: Mapping[str, Any]) -> list[Device]:
    """The devices that a selector means: {"devices": [ids]}, {"labels": {key: value}} or {"all": true}.

    Named devices must exist, belong to the fleet and be able to deploy; a selection by label leaves out those that cannot.
    """
    match dict(selector):
        case {"devices": list() as ids, **rest} if not rest and ids:
            return [_deployable(session, device) for device in dict.fromkeys(ids)]
        case {"labels": dict() as labels, **rest} if not rest and labels:
            found = _all_devices(session, labels)
        case {"all": True, **rest} if not rest:
            found = _all_devices(session, {})
        case _:
            raise InvalidInputError('a selector is {"devices": [ids]}, {"labels": {key: value}} or {"all": true}')
    devices = list(found)
    if not devices:
        raise InvalidInputError("the selector matches no device")
    return devices


def _deployable(session: Session, device: object) -> Device:
    row = get_device(session, str(device))
    if row.state is not DeviceState.ACTIVE:
        raise InvalidInputError(f"device {row.id} was revoked")
    if row.profile != Profile.DEVICE.value:
        raise InvalidInputError(f"{row.id} is a {row.profile}, which deploys nothing")
    return row


def _all_devices(session: Session, labels: Mapping[str, str]) -> Iterator[Device]:
    after, count = "", 0
    while page := list_devices(session, after=after, limit=_PAGE, labels=labels, state=DeviceState.ACTIVE, profile=Profile.DEVICE):
        yield from page
        after, count = page[-1].id, count + len(page)
        if count > MAX_DEVICES:
            raise InvalidInputError(f"the selector matches more than {MAX_DEVICES} devices; split the rollout")
