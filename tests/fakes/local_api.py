"""The local API's sockets as the agent owns them, and real inference workers that serve tiny models on them."""

import socket
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from tests.fakes.children import Child, listen_unix
from tests.fakes.tiny_models import linear_onnx
from tests.fakes.tiny_releases import fill_slot, make_release, make_variant

from covey_agent.client import Client
from covey_agent.core.jobs import InferJob, InferReady

WEIGHTS = np.array([[1, 0], [0, 1]], np.float32)
BIAS = np.zeros(2, np.float32)


class Place:
    """A socket as the agent owns it, and workers on it."""

    def __init__(self, folder: Path, stack: ExitStack, *, name: str = "infer.sock") -> None:
        self.path = folder / name
        self.sock = stack.enter_context(listen_unix(self.path))
        self.tcp = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        self.folder = folder
        self._stack = stack

    def slot(self, name: str, *, version: int = 1, weights: Any = WEIGHTS) -> Path:
        """A filled slot."""
        data = linear_onnx(np.asarray(weights, np.float32), BIAS)
        made = make_release([make_variant(data)], inputs=np.eye(2, dtype=np.float32), outputs=np.eye(2, dtype=np.float32), version=version)
        return fill_slot(self.folder / name, made, variant="onnx-float32", data=data)

    def start(self, slot_dir: Path, *, paused: bool = False, window_s: float = 60.0) -> Child:
        """A worker, ready."""
        job = InferJob(
            slot_dir=str(slot_dir), slot=slot_dir.name, unix_fd=self.sock.fileno(), tcp_fd=self.tcp.fileno(), token="t", window_s=window_s,
            paused=paused,
        )  # fmt: skip
        child = self._stack.enter_context(Child("infer", job, pass_fds=[self.sock.fileno(), self.tcp.fileno()]))
        child.wait_for(InferReady)
        return child

    def client(self, *, timeout_s: float = 10.0) -> Client:
        """For the Unix socket."""
        return self._stack.enter_context(Client(self.path, timeout_s=timeout_s))
