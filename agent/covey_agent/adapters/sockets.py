"""The local API's listening sockets. The agent owns them and lends them to workers, so that connections queue in the backlog while
one worker takes over from another, and no application ever sees a refused connection. Open connections that are idle then go from worker
to worker through a pair of sockets which the agent owns as well."""

import os
import secrets
import socket
from pathlib import Path

from covey_agent.errors import StateError

BACKLOG = 128
MAX_UNIX_PATH = 100  # bytes; the kernel allows 108 with the final zero
SOCKET_NAME = "infer.sock"
TOKEN_NAME = "infer.token"  # noqa: S105  # a file name


class ListeningSockets:
    """A Unix socket in `run/`, and a loopback TCP socket if a port is configured, with a token that local users can read."""

    def __init__(self, unix: socket.socket, tcp: socket.socket | None, token: str) -> None:
        self._unix = unix
        self._tcp = tcp
        self._token = token
        # A stream, because the kernel bounds its queue by bytes: a queue of datagrams often holds ten.
        self._put, self._take = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)

    @classmethod
    def open(cls, run_dir: Path, *, tcp_port: int = 0) -> "ListeningSockets":
        """Bind both. Call it with the state lock held: a socket file that lies there is left over from a dead agent."""
        unix = _listen_unix(run_dir)
        if tcp_port == 0:
            return cls(unix, None, "")
        try:
            tcp = socket.create_server(("127.0.0.1", tcp_port), backlog=BACKLOG)
        except OSError as exc:
            unix.close()
            raise StateError(f"cannot listen on 127.0.0.1:{tcp_port} for the local API: {exc.strerror}") from exc
        return cls(unix, tcp, _read_token(run_dir / TOKEN_NAME))

    @property
    def unix_fd(self) -> int:
        """The listening Unix socket."""
        return self._unix.fileno()

    @property
    def tcp_fd(self) -> int:
        """The listening loopback socket, -1 if there is none."""
        return self._tcp.fileno() if self._tcp else -1

    @property
    def token(self) -> str:
        """What a request on TCP must present; empty without TCP."""
        return self._token

    @property
    def handover_fds(self) -> tuple[int, int]:
        """Where workers put idle connections, and where they take them from."""
        return self._put.fileno(), self._take.fileno()

    def close(self) -> None:
        """Stop listening; the socket file stays, since the next agent replaces it."""
        for sock in (self._unix, self._put, self._take):
            sock.close()
        if self._tcp:
            self._tcp.close()


def _listen_unix(run_dir: Path) -> socket.socket:
    path = run_dir / SOCKET_NAME
    try:
        if not run_dir.exists():
            run_dir.mkdir()
            run_dir.chmod(0o755)  # whatever the umask: who may come this far is decided by the folder above and the socket itself
        path.unlink(missing_ok=True)
        folder = os.open(run_dir, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as exc:
        raise StateError(f"cannot listen on {path}: {exc.strerror}") from exc
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # A state directory deep in the tree makes a path longer than sun_path; the way through /proc is always short.
        long = len(os.fsencode(path)) > MAX_UNIX_PATH
        listener.bind(f"/proc/self/fd/{folder}/{SOCKET_NAME}" if long else str(path))
        path.chmod(0o660)
        listener.listen(BACKLOG)
    except OSError as exc:
        listener.close()
        raise StateError(f"cannot listen on {path}: {exc.strerror}") from exc
    finally:
        os.close(folder)
    return listener


def _read_token(path: Path) -> str:
    if not path.exists():
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o640)
        with os.fdopen(fd, "w") as file:
            file.write(secrets.token_urlsafe(24))
    return path.read_text().strip()
