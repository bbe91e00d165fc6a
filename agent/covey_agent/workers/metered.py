"""Whether the way to the server is metered: what the owner says, what NetworkManager says, or the name of the interface."""

import fnmatch
import shutil
import subprocess
from pathlib import Path

from covey_agent.core.jobs import LinkRules, MeteredPolicy
from covey_agent.workers.errors import NetworkError

_ROUTES = Path("/proc/net/route")
_METERED = ("1", "3")  # NM_METERED_YES, NM_METERED_GUESS_YES
_TIMEOUT_S = 3.0


def check_link(rules: LinkRules, size: int, *, routes: Path = _ROUTES) -> None:
    """Raise NetworkError, so that it is tried again later, if `size` bytes must not come over the link that there is now."""
    if rules.policy is MeteredPolicy.ALLOW or (rules.policy is MeteredPolicy.SMALL and size <= rules.small_bytes):
        return
    why = find_meter(rules, routes=routes)
    if why:
        kept = "nothing" if rules.policy is MeteredPolicy.WAIT else f"at most {rules.small_bytes} bytes"
        raise NetworkError(f"{why}, and network.metered_policy lets {kept} through; {size} bytes wait for another link")


def find_meter(rules: LinkRules, *, routes: Path = _ROUTES) -> str:
    """Why the link counts as metered, or ""."""
    if rules.metered == "yes":
        return "the owner says that the link is metered"
    if rules.metered == "no":
        return ""
    interface = default_interface(_read(routes))
    pattern = next((pattern for pattern in rules.interfaces if interface and fnmatch.fnmatch(interface, pattern)), "")
    if pattern:
        return f"the way out is {interface}, which counts as metered ({pattern})"
    return "NetworkManager says that the link is metered" if _ask_network_manager() in _METERED else ""


def default_interface(table: str) -> str:
    """The interface of the default route with the lowest metric in /proc/net/route, or ""."""
    rows = [line.split() for line in table.splitlines()[1:]]
    defaults = [(int(row[6]), row[0]) for row in rows if len(row) > 7 and row[1] == "00000000" and row[7] == "00000000"]
    return min(defaults)[1] if defaults else ""


def _ask_network_manager() -> str:
    busctl = shutil.which("busctl")
    if busctl is None:
        return ""
    bus, path = "org.freedesktop.NetworkManager", "/org/freedesktop/NetworkManager"
    command = [busctl, "get-property", bus, path, bus, "Metered"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip().removeprefix("u ") if done.returncode == 0 else ""


def _read(path: Path) -> str:
    try:
        return path.read_text("ascii", "replace")
    except OSError:
        return ""
