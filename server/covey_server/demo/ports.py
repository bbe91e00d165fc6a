"""Free TCP ports, so that a demo never collides with what runs already."""

import socket
from contextlib import ExitStack


def free_ports(count: int) -> list[int]:
    """`count` different loopback ports that nobody listens on now."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [listener.getsockname()[1] for listener in sockets]
