"""Tables of the devices capability: devices, invitations, certificates, quarantined digests."""

from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import BigInteger, Column
from sqlmodel import Field, SQLModel

from covey_server.clock import utc_now
from covey_server.db import JsonDict, UtcDateTime


class DeviceState(StrEnum):
    """Whether a device belongs to the fleet."""

    ACTIVE = "active"
    REVOKED = "revoked"  # its certificate and broker rights are gone


class DevicePresence(StrEnum):
    """What is known of a device's connection."""

    NEVER = "never"  # enrolled, not yet seen
    ONLINE = "online"
    OFFLINE = "offline"


class Device(SQLModel, table=True):
    """A machine in the fleet, device or partner, with the newest that it reported."""

    __tablename__ = "devices"
    id: str = Field(primary_key=True)
    profile: str = "device"  # covey_contract Profile value
    state: DeviceState = DeviceState.ACTIVE
    labels: dict[str, str] = Field(default_factory=dict, sa_column=Column(JsonDict, nullable=False))
    enrolled_at: datetime = Field(sa_type=UtcDateTime, default_factory=utc_now)
    certificate_serial: str = ""
    certificate_expires_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    supernode_public_key: str = ""  # OpenSSH text
    supernode_id: str = ""  # Flower's node id, once registered
    presence: DevicePresence = Field(default=DevicePresence.NEVER, index=True)
    presence_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    boot: str = ""
    last_seen_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    agent_version: str = ""
    reported_generation: int = -1
    reported: dict[str, Any] = Field(default_factory=dict, sa_column=Column(JsonDict, nullable=False))  # contract Reported
    serving_model: str = ""
    serving_version: int = 0
    serving_variant: str = ""
    active_slot: str = ""
    deployment_state: str = "idle"  # contract DeploymentState value
    training: str = ""  # run that its trainer works for
    clone_suspected_at: datetime | None = Field(default=None, sa_type=UtcDateTime)  # two machines speak with its identity
    decommission: str = ""  # command that asks it to leave the fleet for good
    decommission_by: datetime | None = Field(default=None, sa_type=UtcDateTime)  # then it is revoked, whether it has answered or not


class Invitation(SQLModel, table=True):
    """A one-time right to enrol one named device. Only a hash of the secret is kept."""

    __tablename__ = "invitations"
    id: str = Field(primary_key=True)
    device_id: str = Field(index=True)
    profile: str = "device"
    labels: dict[str, str] = Field(default_factory=dict, sa_column=Column(JsonDict, nullable=False))
    secret_hash: str = Field(index=True, unique=True)
    created_by: str = ""
    created_at: datetime = Field(sa_type=UtcDateTime, default_factory=utc_now)
    expires_at: datetime = Field(sa_type=UtcDateTime)
    used_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    withdrawn_at: datetime | None = Field(default=None, sa_type=UtcDateTime)


class Certificate(SQLModel, table=True):
    """A certificate that the fleet's authority issued."""

    __tablename__ = "certificates"
    serial: str = Field(primary_key=True)  # hex
    device_id: str = Field(index=True, foreign_key="devices.id")
    issued_at: datetime = Field(sa_type=UtcDateTime)
    expires_at: datetime = Field(sa_type=UtcDateTime)
    revoked_at: datetime | None = Field(default=None, sa_type=UtcDateTime)  # with the device, or retired by a newer one
    pem: str
    broker_user: str = ""  # its DNS name; empty: the device's id, as certificates had before
    key_digest: str = ""  # sha256 of its public key
    request: str = ""  # sha256 of the request that it answers, if it came by MQTT
    delivered_at: datetime | None = Field(default=None, sa_type=UtcDateTime, index=True)  # the device was told; null: not yet
    used_at: datetime | None = Field(default=None, sa_type=UtcDateTime)  # first connection by it that the device reported


class DeviceBoot(SQLModel, table=True):
    """One life of an agent process, as the server has heard of it: what tells two machines with one identity apart."""

    __tablename__ = "device_boots"
    device_id: str = Field(primary_key=True, foreign_key="devices.id")
    boot: str = Field(primary_key=True)
    first_at: datetime = Field(sa_type=UtcDateTime)
    last_at: datetime = Field(sa_type=UtcDateTime)
    said_at: int = Field(default=0, sa_type=BigInteger)  # newest time by its own clock, ms
    generation: int = Field(default=-1, sa_type=BigInteger)  # the highest that it reported
    returns: int = 0  # how often it spoke again after another boot had spoken
    rewound_at: datetime | None = Field(default=None, sa_type=UtcDateTime)  # its numbers were used before, by another boot


class QuarantineEntry(SQLModel, table=True):
    """A digest that failed on a device, as the device reported it."""

    __tablename__ = "quarantine"
    device_id: str = Field(primary_key=True, foreign_key="devices.id")
    digest: str = Field(primary_key=True)
    reason: str = ""
    at: datetime = Field(sa_type=UtcDateTime)
    released_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
