"""Starts agents quickly: a process that has imported everything once and forks a whole agent, or its command, for each request.

    python -m tests.faults.warm SOCKET        (started by `Warm`, with the shim in LD_PRELOAD)

A sweep over hundreds of kill points starts thousands of Python programs; importing numpy, TUF and a runtime for each would take
hours. What runs is the agent's own code in processes of its own: the daemon is forked from here, and its children are forked from it
where it would have started them by name. They have the same pipes, the same descriptors, the same parent, and die by real signals.

Two children are stood in for: `probe` answers at once with what this machine was found to be able to (a real probe tries every
runtime, which says nothing about crashes), and `train` asks for its rounds without training (`trainer.py`).
"""

import contextlib
import ctypes
import fcntl
import json
import logging
import os
import select
import signal
import socket
import ssl
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

os.environ["OPENBLAS_NUM_THREADS"] = "1"

PRELOADED = (
    "covey_agent.app",
    "covey_agent.cli",
    "covey_agent.adapters.enrolment",
    "covey_agent.adapters.enrolment_keys",
    "covey_agent.commands.enroll",
    "covey_agent.commands.run",
    "covey_agent.workers.check",
    "covey_agent.workers.deploy",
    "covey_agent.workers.fill",
    "covey_agent.workers.infer",
    "covey_agent.workers.verify",
    "numpy",
    "tests.faults.trainer",
)
STAND_INS = {"covey_agent.workers.probe": "tests.faults.prober", "covey_agent.workers.train": "tests.faults.trainer"}
QUICK_RETRY_S = 0.2
_HIGH_FD = 200


_forking = threading.Lock()


class ForkedPopen(subprocess.Popen[bytes]):
    """Popen, except that `python -m covey_agent...` is forked instead of started."""

    def _execute_child(self, args: Any, *rest: Any) -> None:
        command = [str(word) for word in args] if isinstance(args, list | tuple) else []
        if command[:2] != [sys.executable, "-m"] or not command[2].startswith("covey_agent."):
            super()._execute_child(args, *rest)  # type: ignore[misc]  # the standard library's own, which typeshed does not tell
            return
        pass_fds, pipes, new_session = rest[3], rest[9:15], rest[20]
        with _forking:
            pid = os.fork()
        if pid == 0:
            _become(command[2:], {0: pipes[0], 1: pipes[3], 2: pipes[5]}, keep=pass_fds, new_session=new_session)
        self.pid = pid
        self._child_created = True
        self._close_pipe_fds(*pipes)  # type: ignore[attr-defined]  # as above


def _become(command: list[str], streams: dict[int, int], *, keep: Sequence[int], new_session: bool) -> None:
    """In the forked child: be the program that was asked for, with these standard streams, and end."""
    code = 70
    try:
        ctypes.CDLL(None).covey_shim_role(command[0].rpartition(".")[2].encode())
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        if new_session:
            os.setsid()
        _take_streams(streams, keep)
        logging.root.handlers.clear()
        module = STAND_INS.get(command[0], command[0])
        code = _run(module, command)
    except BaseException:  # noqa: BLE001 - whatever it was, this process ends here and must not return into its parent's code
        traceback.print_exc()
    finally:
        _flush()
        os._exit(code)


def _exec_in_place(_program: str, arguments: Sequence[str]) -> NoReturn:
    """Instead of `os.execv`, for one that has the shim and all modules already: the other program runs, and then this process ends."""
    code = 70
    try:
        code = _run(arguments[2], list(arguments[2:]))
    except BaseException:  # noqa: BLE001 - as in `_become`
        traceback.print_exc()
    finally:
        _flush()
        os._exit(code)


def _run(module: str, command: list[str]) -> int:
    main = import_module(module).main
    sys.argv = list(command)
    try:
        main(command) if module.endswith("enrolment_keys") else main()
    except SystemExit as exc:
        if isinstance(exc.code, str):
            sys.stderr.write(exc.code + "\n")
        return 0 if exc.code is None else exc.code if isinstance(exc.code, int) else 1
    return 0


def _take_streams(streams: dict[int, int], keep: Sequence[int]) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    high = {target: fcntl.fcntl(null if source == -1 else source, fcntl.F_DUPFD, _HIGH_FD) for target, source in streams.items()}
    for target, source in high.items():
        os.dup2(source, target)
    wanted = {0, 1, 2, *keep}
    for fd in [int(path.name) for path in Path("/proc/self/fd").iterdir()]:
        if fd not in wanted:
            with contextlib.suppress(OSError):  # the descriptor of the listing itself
                os.close(fd)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            continue


def _start_agent(request: dict[str, Any]) -> None:
    """In the forked process: the agent's command line, with the shim looking."""
    code = 70
    try:
        libc = ctypes.CDLL(None)
        libc.prctl(1, int(signal.SIGKILL), 0, 0, 0)  # PR_SET_PDEATHSIG
        os.setsid()
        log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        _take_streams({0: -1, 1: log, 2: log}, keep=())
        os.environ.update(request["environment"])
        vars(subprocess)["Popen"] = ForkedPopen  # from here on children are forked
        vars(os)["execv"] = _exec_in_place
        _fork_between_handshakes()
        _retry_quickly()
        if request["control"]:
            libc.covey_shim_begin(request["control"].encode(), request["role"].encode(), 1)
        import_module("covey_agent.cli").main(request["arguments"])
    except SystemExit as exc:
        code = exc.code if isinstance(exc.code, int) else 1
    except BaseException:  # noqa: BLE001 - as in `_become`
        traceback.print_exc()
    finally:
        _flush()
        os._exit(code)


def _fork_between_handshakes() -> None:
    """A process that is forked while another thread holds a lock of the resolver or of OpenSSL would wait for it for ever; one that is
    started by name would not, so this is the harness's own trouble."""
    for owner, name in ((socket, "getaddrinfo"), (ssl.SSLSocket, "do_handshake"), (ssl.SSLContext, "load_cert_chain")):
        setattr(owner, name, _one_at_a_time(getattr(owner, name)))


def _one_at_a_time(function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arguments: Any, **named: Any) -> Any:
        with _forking:
            return function(*arguments, **named)

    return call


def _retry_quickly() -> None:
    """The waits between tries are not what is tested here."""
    backoff = import_module("covey_agent.core.backoff")
    for waits in (backoff.DEPLOY_RETRY, backoff.RESEND):
        object.__setattr__(waits, "first_s", QUICK_RETRY_S)
        object.__setattr__(waits, "max_s", 1.0)
    for module in ("deployments", "orders"):
        vars(import_module(f"covey_agent.daemon.{module}"))["PERSIST_RETRY_S"] = QUICK_RETRY_S


def main() -> None:
    """Serve requests until the one who started this is gone."""
    ctypes.CDLL(None).prctl(1, int(signal.SIGKILL), 0, 0, 0)
    for name in PRELOADED:
        import_module(name)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(sys.argv[1])
    listener.listen(16)
    sys.stdout.write(f"{len(list(Path('/proc/self/task').iterdir()))}\n")
    sys.stdout.flush()
    running: dict[int, socket.socket] = {}
    while True:
        readable, _, _ = select.select([listener], [], [], 0.01 if running else None)
        if readable:
            _serve(listener.accept()[0], running)
        _reap(running)


def _serve(connection: socket.socket, running: dict[int, socket.socket]) -> None:
    request = json.loads(connection.makefile("rb").readline())
    pid = os.fork()
    if pid == 0:
        _start_agent(request)
    connection.sendall(b"%d\n" % pid)
    running[pid] = connection


def _reap(running: dict[int, socket.socket]) -> None:
    while running:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        connection = running.pop(pid, None)
        if connection is not None:
            try:
                connection.sendall(b"%d\n" % os.waitstatus_to_exitcode(status))
            except OSError:
                logging.getLogger(__name__).debug("nobody waits for process %d any more", pid)
            connection.close()


if __name__ == "__main__":
    main()
