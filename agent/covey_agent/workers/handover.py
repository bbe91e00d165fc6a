"""Idle connections on their way from one worker to the next, through a queue that the agent owns and lends to every worker.

What the backlog of a listening socket is for connections that nobody has accepted yet, this is for those that a paused worker lets go:
they wait in the kernel until a worker that accepts takes them out. The application at the other end notices nothing, and what it has
sent meanwhile waits with its connection.
"""

import array
import errno
import logging
import os
import socket

logger = logging.getLogger(__name__)
_FD_BYTES = array.array("i").itemsize


class Handover:
    """One worker's hold on the queue: the end that connections are put into, and the end that they come out of."""

    def __init__(self, put_fd: int, take_fd: int) -> None:
        self._put = socket.socket(fileno=put_fd)
        self._take = socket.socket(fileno=take_fd)
        for end in (self._put, self._take):
            end.setblocking(False)  # another worker may be faster at taking, and a full queue is no reason to wait

    def fileno(self) -> int:
        """The descriptor that becomes readable when a connection waits."""
        return self._take.fileno()

    def put(self, connection: socket.socket, listener: int) -> bool:
        """Let a connection go that came by the listener of this number; False if the queue takes no more. The caller closes its own end."""
        descriptors = array.array("i", [connection.fileno()])
        try:
            return self._put.sendmsg([bytes([listener])], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, descriptors)]) == 1
        except OSError as exc:  # full, or too many descriptors are under way
            logger.debug("a connection could not be handed over: %s", exc)
            return False

    def take(self) -> tuple[socket.socket, int] | None:
        """The next connection and the number of its listener; None if another worker was faster. Raises OSError."""
        try:
            # One byte at a time: on a stream the kernel never joins what came with descriptors of its own.
            said, ancillary, _, _ = self._take.recvmsg(1, socket.CMSG_SPACE(_FD_BYTES))
        except BlockingIOError:
            return None
        descriptors = array.array("i")
        for level, kind, data in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                descriptors.frombytes(data[: len(data) - len(data) % _FD_BYTES])
        if not said or not descriptors:
            for descriptor in descriptors:
                os.close(descriptor)
            raise OSError(errno.EMFILE, "a connection was handed over without its descriptor")  # this process may hold no more
        return socket.socket(fileno=descriptors[0]), said[0]

    def close(self) -> None:
        """Close this worker's hold; the queue lives on in the agent and in the other worker."""
        self._put.close()
        self._take.close()
