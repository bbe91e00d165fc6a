"""Tables of the access capability: users, API tokens, logins, idempotency keys. Secrets are kept as hashes only."""

from datetime import datetime
from enum import StrEnum

from sqlmodel import Field, SQLModel

from covey_server.clock import utc_now
from covey_server.db import UtcDateTime


class Role(StrEnum):
    """What a user or token may do; each includes the one before."""

    VIEWER = "viewer"  # read everything
    OPERATOR = "operator"  # invite devices, make releases, run rollouts and rounds
    ADMIN = "admin"  # manage users and tokens, revoke devices


class User(SQLModel, table=True):
    """Somebody who logs in to the console."""

    __tablename__ = "users"
    name: str = Field(primary_key=True)
    password_hash: str  # argon2id
    role: Role = Role.VIEWER
    created_at: datetime = Field(sa_type=UtcDateTime, default_factory=utc_now)


class ApiToken(SQLModel, table=True):
    """A bearer token for the API and the CLI."""

    __tablename__ = "api_tokens"
    id: str = Field(primary_key=True)
    name: str
    secret_hash: str = Field(unique=True, index=True)  # sha256 of a 256-bit random secret
    role: Role = Role.VIEWER
    created_at: datetime = Field(sa_type=UtcDateTime, default_factory=utc_now)
    expires_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    revoked_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    last_used_at: datetime | None = Field(default=None, sa_type=UtcDateTime)


class Login(SQLModel, table=True):
    """A console session."""

    __tablename__ = "logins"
    secret_hash: str = Field(primary_key=True)
    user: str = Field(foreign_key="users.name", index=True)
    csrf: str
    created_at: datetime = Field(sa_type=UtcDateTime, default_factory=utc_now)
    expires_at: datetime = Field(sa_type=UtcDateTime)


class IdempotencyKey(SQLModel, table=True):
    """The answer already given to a POST with this key, given again instead of acting twice."""

    __tablename__ = "idempotency_keys"
    key: str = Field(primary_key=True)
    actor: str = Field(primary_key=True)
    route: str
    request_hash: str
    status: int
    body: bytes
    created_at: datetime = Field(sa_type=UtcDateTime, default_factory=utc_now)
