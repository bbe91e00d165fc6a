"""What the service manager is told, by systemd's protocol: one datagram of `NAME=value` lines to the socket in NOTIFY_SOCKET.

Rules:
- The variables are taken out of the environment, so that no child process can speak, or count as a watchdog, for the agent.
- A manager that does not listen is no reason to stop: nobody is told, and the agent works on.
- Nothing here ever blocks the event loop for longer than `SEND_TIMEOUT_S`.
"""

import logging
import os
import socket
from collections.abc import MutableMapping

logger = logging.getLogger(__name__)
SEND_TIMEOUT_S = 1.0
_VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")


class ServiceNotifier:
    """Speaks to one address; without one, to nobody."""

    def __init__(self, address: str = "", *, watchdog_s: float = 0.0) -> None:
        self._address = "\0" + address[1:] if address.startswith("@") else address  # "@": Linux's abstract namespace
        self._failed = False
        self.watchdog_s = watchdog_s  # silence for this long ends the process; 0: nobody watches

    def tell(self, *assignments: str) -> None:
        """Send these lines in one datagram."""
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
                sock.settimeout(SEND_TIMEOUT_S)
                sock.sendto("\n".join(assignments).encode("utf-8", "replace"), self._address)
        except OSError as exc:
            (logger.debug if self._failed else logger.warning)("the service manager cannot be told %s: %s", assignments[0], exc)
            self._failed = True


def take_notifier(environment: MutableMapping[str, str]) -> ServiceNotifier:
    """Take the manager's variables out of `environment`."""
    address, period, owner = (environment.pop(name, "") for name in _VARIABLES)
    is_ours = not owner or owner == str(os.getpid())
    watchdog_s = int(period) / 1e6 if is_ours and period.isdecimal() else 0.0
    return ServiceNotifier(address, watchdog_s=watchdog_s)
