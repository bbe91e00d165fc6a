"""Who this device is: the files that enrolment wrote once, and the newer keys that renewals have added, read.

    identity/  identity.json ca.crt supernode.key   written once
               device.key device.crt                generation 0, as enrolment made it; also what MQTT client ids are made of for ever
               keys/N/ device.key device.crt        generation N, complete before it has its name
               keys/pending/                        a key that waits for its certificate
               current.json                         which generation counts; replaced by one rename

There is a working identity at every instant: a generation is named only when it is complete, the pointer names it only then, and while
a new one has not connected yet, the one before is tried in turn.
"""

from dataclasses import dataclass
from pathlib import Path

import msgspec

from covey_agent.core.certificates import Validity, read_validity
from covey_agent.core.jobs import BrokerAddress
from covey_agent.errors import StateError
from covey_contract.messages import DeviceIdField, Profile

FOLDER = "identity"
REPLACED, REPLACING = "identity.old", "identity.new"  # while `enroll --replace` puts one in the place of the other
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


class Current(msgspec.Struct, frozen=True):
    """`identity/current.json`: the generation that counts and the one before it."""

    generation: int = 0
    previous: int = 0
    proven: bool = True  # it has connected; until then the one before is tried in turn


@dataclass(frozen=True, slots=True)
class Identity:
    """The identity file and where its neighbours are. What changes with a renewal is read from the disk each time."""

    file: IdentityFile
    folder: Path

    @property
    def current(self) -> Current:
        """Which generation counts. A pointer that is unreadable, or names one that is not there, is none."""
        try:
            current = msgspec.json.decode((self.folder / "current.json").read_bytes(), type=Current)
        except (OSError, msgspec.DecodeError):
            return Current()
        if not self.is_complete(current.generation):
            return Current(current.previous, current.previous) if self.is_complete(current.previous) else Current()
        return current

    @property
    def broker(self) -> BrokerAddress:
        """Where and as whom children connect: by a certificate that has connected before."""
        current = self.current
        return self._address(current.generation if current.proven else current.previous)

    def address(self, attempt: int) -> BrokerAddress:
        """Where and as whom to connect in this attempt, counted from 1: an unproven certificate first, then the one before in turn."""
        current = self.current
        return self._address(current.generation if current.proven or attempt % 2 else current.previous)

    def validity(self) -> Validity | None:
        """Of the certificate that counts; None if it is unreadable."""
        return validity_of(Path(self._address(self.current.generation).cert_file))

    def is_complete(self, generation: int) -> bool:
        """Whether a generation's key and certificate are there."""
        folder = self.keys(generation)
        return (folder / "device.key").is_file() and (folder / "device.crt").is_file()

    def keys(self, generation: int) -> Path:
        """The folder of one generation."""
        return self.folder / "keys" / str(generation) if generation else self.folder

    def through(self, host: str, port: int) -> "Identity":
        """The same identity, with the broker reached another way; empty and 0 keep what enrolment said."""
        file = msgspec.structs.replace(self.file, mqtt_host=host or self.file.mqtt_host, mqtt_port=port or self.file.mqtt_port)
        return Identity(file, self.folder)

    @property
    def supernode_key(self) -> str:
        """The key that Flower's fleet edge knows this participant by."""
        return str(self.folder / "supernode.key")

    def _address(self, generation: int) -> BrokerAddress:
        folder = self.keys(generation)
        return BrokerAddress(
            host=self.file.mqtt_host,
            port=self.file.mqtt_port,
            ca_file=str(self.folder / "ca.crt"),
            cert_file=str(folder / "device.crt"),
            key_file=str(folder / "device.key"),
            device=self.file.device,
            session_file=str(self.folder / "device.key"),
        )


def validity_of(certificate: Path) -> Validity | None:
    """Number and times of a certificate file; None if it is unreadable."""
    try:
        return read_validity(certificate.read_text("ascii"))
    except (OSError, ValueError):
        return None


def load_identity(state_dir: Path) -> Identity:
    """Raises StateError if this directory is not enrolled."""
    _finish_replacing(state_dir)
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


def _finish_replacing(state_dir: Path) -> None:
    """A power cut between the two renames of `enroll --replace` leaves no `identity`: the complete new one takes its place."""
    try:
        if not (state_dir / FOLDER).exists() and (state_dir / REPLACING).exists():
            (state_dir / REPLACING).rename(state_dir / FOLDER)
    except OSError as exc:
        raise StateError(f"cannot put {state_dir / REPLACING} in its place: {exc.strerror}") from exc
