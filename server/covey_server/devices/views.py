"""What the API shows of devices and invitations, and what it takes."""

from datetime import datetime
from typing import Any, Self

from pydantic import Field

from covey_server.api_deps import ApiInput, ApiView
from covey_server.devices.models import Device, DeviceBoot, DevicePresence, DeviceState, Invitation, QuarantineEntry


class DeviceView(ApiView):
    """A device in a list."""

    id: str
    profile: str = Field(description="device: deploys and infers; partner: holds data and joins rounds")
    state: DeviceState
    presence: DevicePresence
    presence_at: datetime | None = Field(description="since when")
    last_seen_at: datetime | None
    labels: dict[str, str]
    enrolled_at: datetime
    agent_version: str
    serving_model: str = Field(description="empty: nothing serves")
    serving_version: int
    serving_variant: str
    deployment_state: str = Field(description="where the device is in its latest deployment")
    training: str = Field(description="run that its trainer works for, if any")


class QuarantineView(ApiView):
    """A digest that a device refuses because it failed there."""

    digest: str
    reason: str
    at: datetime


class BootView(ApiView):
    """One life of a device's agent."""

    boot: str
    first_at: datetime
    last_at: datetime
    generation: int = Field(description="the highest report number")
    returns: int = Field(description="how often it spoke again after another boot had spoken")
    rewound_at: datetime | None = Field(description="when it used numbers that another boot had used")


class DeviceDetail(DeviceView):
    """A device with all that is known of it."""

    active_slot: str
    certificate_serial: str
    certificate_expires_at: datetime | None
    reported_generation: int
    reported: dict[str, Any] = Field(description="its full state exactly as it reported it")
    clone_suspected_at: datetime | None = Field(description="since when two machines speak with its identity; null: they do not")
    decommission: str = Field(description="the command by which it was asked to leave the fleet for good; empty: it was not")
    decommission_by: datetime | None = Field(description="when it is revoked, whether it has answered or not")
    quarantine: list[QuarantineView]
    boots: list[BootView] = Field(description="the lives of its agent that are remembered, the one that spoke last first")

    @classmethod
    def of(cls, device: Device, quarantine: list[QuarantineEntry], boots: list[DeviceBoot]) -> Self:
        """The view of a row, its quarantine and its boots."""
        fields = {name: getattr(device, name) for name in cls.model_fields if name not in {"quarantine", "boots"}}
        return cls(
            **fields,
            quarantine=[QuarantineView.model_validate(entry) for entry in quarantine],
            boots=[BootView.model_validate(boot) for boot in boots],
        )


class CommandView(ApiView):
    """A command that was sent to a device."""

    command: str = Field(description="its id; the device's answer names it")


class AgentVersionView(ApiView):
    """A version of the agent that is signed."""

    version: str
    digest: str = Field(description="sha256 of its wheel")


class AgentUpgrade(ApiInput):
    """Which version a device shall try."""

    version: str = Field(max_length=40, examples=["0.2.0"])
    again: bool = Field(False, description="even if this version failed there before")


class Farewell(ApiInput):
    """How a device shall leave."""

    wipe: bool = Field(False, description="models, readings and keys are deleted there, if its own policy allows it; never the ledger")
    wait_hours: float = Field(168.0, gt=0, le=2160, description="hours until it is revoked although it has not answered")


class LabelChange(ApiInput):
    """Labels to set; null removes one, labels left out stay."""

    labels: dict[str, str | None] = Field(max_length=64, examples=[{"site": "lyon", "old": None}])


class NewInvitation(ApiInput):
    """Which device may enrol, as what, and until when."""

    device: str = Field(max_length=200, description="the id it shall have: a-z, 0-9 and -, at most 64 characters", examples=["camera-7"])
    profile: str = Field("device", description="device or partner")
    labels: dict[str, str] = Field(default_factory=dict, max_length=64)
    ttl_hours: float | None = Field(None, gt=0, le=720, description="hours until it expires; null: `pki.invitation_hours`")


class InvitationView(ApiView):
    """A one-time right to enrol."""

    id: str
    device_id: str
    profile: str
    labels: dict[str, str]
    created_by: str
    created_at: datetime
    expires_at: datetime
    used_at: datetime | None
    withdrawn_at: datetime | None


class NewInvitationView(InvitationView):
    """An invitation that was just made."""

    token: str | None = Field(description="give it to `covey-agent enroll --token`; shown this once, null when an answer is repeated")

    @classmethod
    def of(cls, invitation: Invitation, token: str) -> Self:
        """The view of a row and its secret text."""
        return cls(**InvitationView.model_validate(invitation).model_dump(), token=token)
