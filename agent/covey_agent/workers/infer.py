"""`python -m covey_agent.workers.infer`: serve one slot's model through the local API.

InferJob -> InferReady, then InferWindow every `window_s` until Drain or the end of standard input. A model that does not load ends
the process with exit code 70.
"""

import ctypes
import logging
import os
import socket
import threading
import time
from pathlib import Path

from covey_agent.core.jobs import Accepting, Drain, InferJob, InferReady, Pause, Resume
from covey_agent.workers.errors import ModelError
from covey_agent.workers.lines import Lines

# Before numpy is imported, because its linear algebra makes one buffer a core while it loads.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from covey_agent.workers.golden import read_golden
from covey_agent.workers.handover import Handover
from covey_agent.workers.localapi import LocalApi
from covey_agent.workers.runtimes import load_model
from covey_agent.workers.served import ServedModel
from covey_agent.workers.server import Listener, Server
from covey_agent.workers.slotmodel import read_slot
from covey_agent.workers.window import Window

logger = logging.getLogger(__name__)
EXIT_NO_MODEL = 70  # EX_SOFTWARE
_DRAIN_S = 30.0
_M_ARENA_MAX = -8  # mallopt(3)


def main() -> None:
    """Serve until told to stop."""
    lines = Lines.take_over()
    job = lines.read_job(InferJob)
    _use_one_heap()
    window = Window()
    start = time.perf_counter()
    try:
        api, served = load_api(job, window)
    except ModelError as exc:
        logger.warning("cannot serve slot %s: %s", job.slot, exc)
        raise SystemExit(EXIT_NO_MODEL) from exc
    handover = Handover(job.handover_put_fd, job.handover_take_fd) if job.handover_put_fd >= 0 else None
    server = Server(_listeners(job), api.handle, handover=handover, paused=job.paused)
    server.start()
    lines.emit(InferReady(load_ms=(time.perf_counter() - start) * 1000))
    threading.Thread(target=_report, args=(lines, window, served, job.window_s), name="window", daemon=True).start()
    obey(lines, server)
    server.close()
    lines.emit(window.take())


def load_api(job: InferJob, window: Window) -> tuple[LocalApi, ServedModel]:
    """Load the slot's model and run it once, so that the first request does not pay for it. Raises ModelError."""
    content = read_slot(Path(job.slot_dir))
    model = load_model(content.model, content.variant, threads=job.threads, provider=content.slot.provider)
    inputs, _ = read_golden(content.release.golden)
    if inputs.shape[1:] == model.sample_shape:
        model.run(inputs[:1])
    served = ServedModel(model, content.release.labels, window)
    return LocalApi(content, served, window, slot=job.slot), served


def obey(lines: Lines, server: Server) -> None:
    """Follow orders until Drain, or until there is nobody left to give any."""
    for order in lines.orders():
        match order:
            case Pause():
                server.pause()
            case Resume():
                server.resume()
                lines.emit(Accepting())
            case Drain():
                break
            case _:
                logger.warning("an inference worker does not take %s", type(order).__name__)
    if not server.drain(_DRAIN_S):
        logger.warning("some requests did not end within %.0f s", _DRAIN_S)


def _listeners(job: InferJob) -> list[Listener]:
    listeners = [Listener(socket.socket(fileno=job.unix_fd))]
    if job.tcp_fd >= 0:
        listeners.append(Listener(socket.socket(fileno=job.tcp_fd), job.token))
    return listeners


def _report(lines: Lines, window: Window, served: ServedModel, every_s: float) -> None:
    while True:
        time.sleep(every_s)
        lines.emit(window.take(busy_s=served.busy_s))


def _use_one_heap() -> None:
    """glibc gives threads heaps of their own, which fragment; on a small device one heap is worth more than the contention costs."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(_M_ARENA_MAX, 1)


if __name__ == "__main__":
    main()
