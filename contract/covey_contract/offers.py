"""How the offers that stand beside signed metadata are named where they are asked for."""

from covey_contract.errors import InvalidIdError
from covey_contract.ids import Digest, parse_digest

DELTAS = "deltas/"
DOWNLOADS = "downloads/"


def delta_name(base: str, target: str) -> str:
    """The name under which a device asks for the delta between two artifacts."""
    return f"{DELTAS}{parse_digest(base)}/{parse_digest(target)}"


def parse_delta_name(name: str) -> tuple[Digest, Digest]:
    """(base, target). Raises InvalidIdError."""
    base, slash, target = name.removeprefix(DELTAS).partition("/")
    if not name.startswith(DELTAS) or not slash:
        raise InvalidIdError("delta", name, f"{DELTAS}<base>/<target>")
    return parse_digest(base), parse_digest(target)


def download_name(digest: str) -> str:
    """The name under which a device asks where it can download an artifact."""
    return f"{DOWNLOADS}{parse_digest(digest)}"


def parse_download_name(name: str) -> Digest:
    """The digest. Raises InvalidIdError."""
    if not name.startswith(DOWNLOADS):
        raise InvalidIdError("download", name, f"{DOWNLOADS}<digest>")
    return parse_digest(name.removeprefix(DOWNLOADS))
