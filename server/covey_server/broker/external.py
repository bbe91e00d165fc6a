"""Permissions for a broker that the operator runs: we write who belongs to the fleet, the operator's broker enforces it.

Brokers with patterns (Mosquitto's `pattern write covey/v1/d/%u/up/#`) need no list at all; `devices.txt` is for the others, and
for what must drop live connections of revoked devices.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from covey_server.broker.crl import MosquittoPermissions
from covey_server.broker.files import write_whole
from covey_server.broker.mosquitto_files import MosquittoFiles
from covey_server.broker.permissions import NatsPermissions
from covey_server.clock import utc_now
from covey_server.devices.authority import FileAuthority
from covey_server.parts import BrokerRight, Permissions
from covey_server.settings import Settings


@dataclass(frozen=True, slots=True)
class DeviceList:
    """Writes the ids of the active devices to a file, one a line."""

    path: Path

    def apply(self, rights: Iterable[BrokerRight]) -> None:
        """Replace the list."""
        devices = {right.device for right in rights if right.revoked_at is None}
        write_whole(self.path, "".join(f"{device}\n" for device in sorted(devices)))


def permissions_of(settings: Settings) -> Permissions:
    """The permissions of the broker that the settings name."""
    if settings.broker.kind == "embedded":
        return NatsPermissions.of(settings)
    if settings.broker.kind == "mosquitto":
        return MosquittoPermissions(MosquittoFiles.of(settings), lambda: FileAuthority.open(settings), settings.pki, utc_now)
    return DeviceList(settings.path("broker", "devices.txt"))
