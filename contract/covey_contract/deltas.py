"""How a delta between two artifacts is named where it is asked for."""

from covey_contract.errors import InvalidIdError
from covey_contract.ids import Digest, parse_digest

PREFIX = "deltas/"


def delta_name(base: str, target: str) -> str:
    """The name under which a device asks for the offer."""
    return f"{PREFIX}{parse_digest(base)}/{parse_digest(target)}"


def parse_delta_name(name: str) -> tuple[Digest, Digest]:
    """(base, target). Raises InvalidIdError."""
    base, slash, target = name.removeprefix(PREFIX).partition("/")
    if not name.startswith(PREFIX) or not slash:
        raise InvalidIdError("delta", name, f"{PREFIX}<base>/<target>")
    return parse_digest(base), parse_digest(target)
