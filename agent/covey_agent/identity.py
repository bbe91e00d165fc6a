"""Who this device is: the files that enrolment wrote once, read."""

from dataclasses import dataclass
from pathlib import Path

import msgspec

from covey_agent.core.jobs import BrokerAddress
from covey_agent.errors import StateError
from covey_contract.messages import DeviceIdField, Profile

FOLDER = "identity"
ENROL_HINT = "enrol first: covey-agent enroll --token TOKEN --state-dir DIR"


class IdentityFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`identity/identity.json`."""

    device: DeviceIdField
    profile: Profile
    url: str
    mqtt_host: str
    mqtt_port: int
    fleet_api: str
    ca_fingerprint: str
    enrolled_at: int


@dataclass(frozen=True, slots=True)
class Identity:
    """The identity file and where its neighbours are."""

    file: IdentityFile
    folder: Path

    @property
    def broker(self) -> BrokerAddress:
        """Where and as whom to connect."""
        return BrokerAddress(
            host=self.file.mqtt_host,
            port=self.file.mqtt_port,
            ca_file=str(self.folder / "ca.crt"),
            cert_file=str(self.folder / "device.crt"),
            key_file=str(self.folder / "device.key"),
            device=self.file.device,
        )

    def through(self, host: str, port: int) -> "Identity":
        """The same identity, with the broker reached another way; empty and 0 keep what enrolment said."""
        file = msgspec.structs.replace(self.file, mqtt_host=host or self.file.mqtt_host, mqtt_port=port or self.file.mqtt_port)
        return Identity(file, self.folder)

    @property
    def supernode_key(self) -> str:
        """The key that Flower's fleet edge knows this participant by."""
        return str(self.folder / "supernode.key")


def load_identity(state_dir: Path) -> Identity:
    """Raises StateError if this directory is not enrolled."""
    folder = state_dir / FOLDER
    try:
        data = (folder / "identity.json").read_bytes()
    except FileNotFoundError as exc:
        raise StateError(f"{state_dir} is not enrolled; {ENROL_HINT}") from exc
    except OSError as exc:
        raise StateError(f"cannot read {folder}: {exc.strerror}") from exc
    try:
        return Identity(file=msgspec.json.decode(data, type=IdentityFile), folder=folder)
    except msgspec.DecodeError as exc:
        raise StateError(f"{folder / 'identity.json'} is damaged: {exc}") from exc
