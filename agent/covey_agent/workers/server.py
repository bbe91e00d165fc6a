"""Accept connections on sockets that the agent owns, and hand them over to another worker without dropping a request.

- One thread accepts; each connection has a thread, so that a request goes from socket to model to socket without a switch. There
  are at most `max_connections`. At the limit, the one idle for longest is closed, else the one whose peer has kept its thread waiting
  for longest, with its request or by not taking its answer. Who is not accepted waits in the kernel.
- Pause: stop accepting; finish what is under way; hand every connection that is idle then to the worker that accepts (handover.py). The
  application's connection lives on, and a request that it sends meanwhile is read by the other worker, so none can be lost.
- Without a hand-over, or when its queue is full: whatever is asked on open connections is answered with `Connection: close`, and
  connections that ask nothing within a short grace are ended by shutting down their reading side. A request that had arrived is
  still read and answered, and on a Unix socket one that had not fails while being sent.
"""

import hmac
import logging
import os
import select
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from covey_agent.workers.handover import Handover
from covey_agent.workers.http import HttpProblemError, Request, Response, Wire

Handler = Callable[[Request, Callable[[], bytearray]], Response]
Source = Callable[[], tuple[socket.socket, int] | None]  # a connection and the number of its listener; None: another worker was faster
logger = logging.getLogger(__name__)
_STACK_BYTES = 1024 * 1024
_LOOK_MS = 250.0  # at the limit, for peers that have become too slow


@dataclass(frozen=True, slots=True)
class Listener:
    """A listening socket and the bearer token that its callers must show, if any."""

    sock: socket.socket
    token: str = ""


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """Bounds."""

    max_connections: int = 64
    io_timeout_s: float = 10.0  # one read or write
    idle_s: float = 60.0  # between requests of one connection
    grace_s: float = 0.5  # after Pause, before idle connections are closed
    slow_s: float = 2.0  # how long a peer may keep a thread waiting while others wait for a connection


class Server:
    """Serves until `drain`."""

    def __init__(
        self,
        listeners: list[Listener],
        handle: Handler,
        *,
        handover: Handover | None = None,
        settings: ServerSettings | None = None,
        paused: bool = False,
    ) -> None:
        self._listeners = listeners
        self._handle = handle
        self._handover = handover
        self._settings = settings or ServerSettings()
        self._paused = paused
        self._paused_at = time.monotonic()
        self._closed = False
        self._acceptor: threading.Thread | None = None
        self._sessions: set[_Session] = set()
        self._changed = threading.Condition()
        self._wake_out, self._wake_in = socket.socketpair()
        self._wake_in.setblocking(False)
        self._pause_fd = os.eventfd(int(paused), os.EFD_NONBLOCK)  # readable while paused: wakes every idle connection at once
        for listener in listeners:
            # Shared with the other worker: between poll and accept it may take the connection, and accept must not block then.
            listener.sock.setblocking(False)

    def start(self) -> None:
        """Begin accepting, unless paused."""
        threading.stack_size(_STACK_BYTES)
        self._acceptor = threading.Thread(target=self._accept_until_closed, name="accept", daemon=True)
        self._acceptor.start()

    def pause(self) -> None:
        """Stop accepting and make clients move on."""
        with self._changed:
            if not self._paused:
                os.eventfd_write(self._pause_fd, 1)
            self._paused = True
            self._paused_at = time.monotonic()
        self._wake()

    def resume(self) -> None:
        """Accept again."""
        with self._changed:
            if self._paused:
                os.eventfd_read(self._pause_fd)
            self._paused = False
        self._wake()

    def drain(self, timeout_s: float) -> bool:
        """Pause, and wait until every connection has ended; return whether they have."""
        self.pause()
        with self._changed:
            return self._changed.wait_for(lambda: not self._sessions, timeout_s)

    def close(self) -> None:
        """End the acceptor and close this worker's descriptors; the sockets live on in the agent and the other worker."""
        self._closed = True
        self._wake()
        if self._acceptor is not None:
            self._acceptor.join()
        for sock in (self._wake_in, self._wake_out, *(listener.sock for listener in self._listeners)):
            sock.close()
        if self._handover is not None:
            self._handover.close()
        os.close(self._pause_fd)

    def _accept_until_closed(self) -> None:
        somebody_waits = False  # at the limit, and a connection is waiting in the kernel
        while not self._closed:
            has_room = self._has_room()
            somebody_waits = somebody_waits and not has_room and not self._paused
            if somebody_waits:
                self._make_room()
            poll = select.poll()
            poll.register(self._wake_out, select.POLLIN)
            # At the limit one look at the listeners is enough: they would stay readable, and polling them would spin.
            watched = {} if self._paused or somebody_waits else self._sources()
            for descriptor in watched:
                poll.register(descriptor, select.POLLIN)
            for descriptor, _ in poll.poll(_LOOK_MS if somebody_waits else self._end_after_grace()):
                if descriptor not in watched:
                    self._wake_out.recv(4096)
                elif has_room:
                    self._admit(watched[descriptor])
                else:
                    somebody_waits = True

    def _sources(self) -> dict[int, Source]:
        """Where connections come from, by the descriptor that becomes readable."""
        sources: dict[int, Source] = {}
        for number, listener in enumerate(self._listeners):
            sources[listener.sock.fileno()] = partial(_accept, listener.sock, number)
        if self._handover is not None:
            sources[self._handover.fileno()] = self._handover.take
        return sources

    def _has_room(self) -> bool:
        with self._changed:
            return not self._paused and not self._is_full()

    def _admit(self, source: Source) -> None:
        if not self._has_room():
            return
        try:
            came = source()
        except OSError as exc:  # e.g. out of descriptors: those who wait are not lost, but do not spin
            logger.warning("cannot accept: %s", exc)
            time.sleep(0.1)
            return
        if came is None:
            return  # the other worker was faster
        sock, number = came
        sock.settimeout(self._settings.io_timeout_s)
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        session = _Session(sock, number, pause_fd=-1 if self._handover is None else self._pause_fd)
        with self._changed:
            self._sessions.add(session)
        try:
            threading.Thread(target=self._serve, args=(session,), name="connection", daemon=True).start()
        except RuntimeError as exc:  # no thread to be had
            logger.warning("cannot serve a connection: %s", exc)
            with self._changed:
                self._sessions.discard(session)
            sock.close()

    def _end_after_grace(self) -> float | None:
        """When paused: end the idle connections once the grace is over; return for how many milliseconds the acceptor may sleep."""
        if not self._paused:
            return None
        left = self._paused_at + self._settings.grace_s - time.monotonic()
        if left > 0:
            return left * 1000 + 1
        self._end_idle(lambda session: not session.is_movable)
        return None

    def _make_room(self) -> None:
        """End the longest idle connection (the same one again, as long as it has not gone), or else the slowest peer's."""
        if not self._end_idle(lambda _: True, most=1):
            self._end_slow(most=1)

    def _end_slow(self, *, most: int | None = None) -> None:
        """Peers that have kept their thread waiting for too long, the slowest first."""
        since = time.monotonic() - self._settings.slow_s
        with self._changed:
            waited = [(session.waits_since, id(session), session) for session in self._sessions if session.waits_since is not None]
            for waits_since, _, session in sorted(waited)[:most]:
                if waits_since < since:
                    session.end_slow()

    def _end_idle(self, which: "Callable[[_Session], bool]", *, most: int | None = None) -> int:
        """The longest idle first; return how many. Under the lock, since one that moves on just now is no longer ours to end."""
        with self._changed:
            idle = [(session.idle_since, id(session), session) for session in self._sessions if session.idle_since is not None]
            ended = [session for _, _, session in sorted(idle)[:most] if which(session)]
            for session in ended:
                session.end()
        return len(ended)

    def _serve(self, session: "_Session") -> None:
        token = self._listeners[session.listener].token
        try:
            while self._wait(session) and self._answer(session, token):
                session.idle_since, session.waits_since = time.monotonic(), None
                if self._paused or self._is_full():
                    self._wake()
        except (OSError, ValueError) as exc:  # the peer's doing: gone, or too slow
            logger.debug("a connection ended: %s", exc)
        finally:
            session.sock.close()
            with self._changed:
                was_full = self._is_full()
                self._sessions.discard(session)
                self._changed.notify_all()
            if was_full:
                self._wake()

    def _is_full(self) -> bool:
        return len(self._sessions) >= self._settings.max_connections

    def _wait(self, session: "_Session") -> bool:
        """Until a request begins; False if there will be none here: the peer has left, was idle for too long, or moves on."""
        while not session.wire.has_begun:
            if self._paused and session.is_movable and self._hand_over(session):
                return False
            woken = session.wait(self._settings.idle_s)
            if not woken:
                return False
            if session.sock.fileno() in woken and not (self._paused and session.is_movable):
                break
        begun = session.wire.wait()
        if begun:
            session.begin_to_read()
        return begun

    def _hand_over(self, session: "_Session") -> bool:
        idle_since = session.idle_since
        with self._changed:
            session.idle_since = None
        if self._handover is not None and self._handover.put(session.sock, session.listener):
            return True
        session.stay()
        session.idle_since = idle_since
        return False

    def _answer(self, session: "_Session", token: str) -> bool:
        """Answer one request; return whether the connection stays open."""
        wire, close = session.wire, True
        try:
            request = wire.read_head()
            _authorize(request, token)
            response = self._handle(request, lambda: session.read_body(request))
            close = response.close or not request.keep_alive
        except HttpProblemError as problem:
            response = problem.to_response()
        except TimeoutError as exc:
            logger.debug("a request did not arrive: %s", exc)
            response = HttpProblemError(408, "the request takes too long to arrive").to_response()
        except MemoryError:  # this request finds none; others may, and the thread must say so rather than die
            response = HttpProblemError(503, "there is no memory for this request", headers=(("Retry-After", "1"),)).to_response()
        # What was sent ahead and is read already cannot move with the connection; the client sends it again to whoever serves then.
        close = close or (self._paused and (not session.is_movable or wire.has_begun))
        if response.status == 503:  # there is no room for this request, but there may be for its repetition
            self._end_slow()
        session.begin_to_send()
        wire.send(response, close=close)
        if close:
            wire.linger()
        return not close

    def _wake(self) -> None:
        with suppress(OSError):  # enough wakes are on their way, or the server is closed
            self._wake_in.send(b"x")


def _accept(sock: socket.socket, number: int) -> tuple[socket.socket, int] | None:
    try:
        return sock.accept()[0], number
    except BlockingIOError:
        return None


class _Session:
    """One open connection."""

    def __init__(self, sock: socket.socket, listener: int, *, pause_fd: int) -> None:
        """`pause_fd` becomes readable when the connection is to move on; -1: it never is."""
        self.sock = sock
        self.wire = Wire(sock)
        self.listener = listener
        self.idle_since: float | None = time.monotonic()  # None while a request is under way
        self.waits_since: float | None = None  # while a request is under way and its peer's turn, to send or to receive
        self._sends = False
        self._pause_fd = pause_fd
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)
        if self.is_movable:
            self._poll.register(pause_fd, select.POLLIN)

    @property
    def is_movable(self) -> bool:
        """Whether another worker may get it."""
        return self._pause_fd >= 0

    def stay(self) -> None:
        """It could not be handed over, and ends here."""
        self._poll.unregister(self._pause_fd)
        self._pause_fd = -1

    def wait(self, timeout_s: float) -> list[int]:
        """The descriptors that woke it; none if nothing happened for so long."""
        return [descriptor for descriptor, _ in self._poll.poll(timeout_s * 1000)]

    def begin_to_read(self) -> None:
        """A request begins, and we wait for the peer to send the rest of it."""
        self.idle_since, self.waits_since, self._sends = None, time.monotonic(), False

    def read_body(self, request: Request) -> bytearray:
        """The rest of a request; from now on the peer waits for us."""
        body = self.wire.read_body(request)
        self.waits_since = None
        return body

    def begin_to_send(self) -> None:
        """From now on we wait for the peer to take its answer."""
        self.waits_since, self._sends = time.monotonic(), True

    def end_slow(self) -> None:
        """Wake its thread out of reading a request, which it answers with 408, or out of sending an answer that nobody takes."""
        self.wire.hurry()
        with suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR if self._sends else socket.SHUT_RD)

    def end(self) -> None:
        """Wake its thread with an end of stream, after whatever has already arrived."""
        with suppress(OSError):  # it has ended by itself
            self.sock.shutdown(socket.SHUT_RD)


def _authorize(request: Request, token: str) -> None:
    if token and not hmac.compare_digest(request.headers.get("authorization", "").encode(), f"Bearer {token}".encode()):
        raise HttpProblemError(401, "a bearer token is needed here", headers=(("WWW-Authenticate", "Bearer"),), close=True)
