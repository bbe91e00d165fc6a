"""A bad link between two network namespaces, made of two TUN devices and a thread that forwards what goes in at one end.

    with LossyWire("covey-a", "covey-b") as wire:          # 10.78.0.1 and 10.78.0.2; each namespace has its own loopback too
        wire.shape(Shape(kbit_per_s=1000, delay_ms=50, loss=0.05))
        subprocess.run(["ip", "netns", "exec", "covey-b", ...])

Real IP packets are delayed, queued and dropped, so TCP behaves as it does on such a link. Needs root, /dev/net/tun and ip (iproute2).
"""

import ctypes
import fcntl
import heapq
import os
import random
import select
import shutil
import struct
import subprocess
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

ADDRESSES = ("10.78.0.1", "10.78.0.2")
_TUNSETIFF, _TUN, _NO_PACKET_INFO = 0x400454CA, 0x0001, 0x1000
_CLONE_NEWNET = 0x40000000
_MAX_PACKET = 65536


@dataclass(frozen=True, slots=True)
class Shape:
    """How bad it is, in each direction."""

    kbit_per_s: float = 0.0  # 0: as fast as this machine
    delay_ms: float = 0.0
    loss: float = 0.0  # share of packets
    queue_packets: int = 100  # what waits for the rate; more is dropped, as in a modem
    is_up: bool = True


@dataclass(slots=True)
class Counter:
    """What went into one end."""

    packets: int = 0
    octets: int = 0
    lost: int = 0


class LossyWire:
    """Two namespaces and the wire between them, for the length of a block."""

    def __init__(self, left: str, right: str, *, seed: int = 0) -> None:
        self._names = (left, right)
        self._chance = random.Random(seed)
        self._shape = Shape()
        self._stop = threading.Event()
        self._ends: list[int] = []
        self._free_at = [0.0, 0.0]
        self._waiting = [0, 0]
        self.counters = (Counter(), Counter())

    @staticmethod
    def is_possible() -> bool:
        """Whether this process may make one."""
        return os.geteuid() == 0 and Path("/dev/net/tun").exists() and shutil.which("ip") is not None

    def __enter__(self) -> Self:
        made = []
        try:
            for name in self._names:
                _ip("netns", "add", name)
                made.append(name)
            self._ends = [
                _open_end(name, address, other) for name, address, other in zip(self._names, ADDRESSES, ADDRESSES[::-1], strict=True)
            ]
        except (OSError, subprocess.CalledProcessError):
            for name in made:
                _ip("netns", "delete", name)
            raise
        self._thread = threading.Thread(target=self._forward, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()
        for end in self._ends:
            os.close(end)
        for name in self._names:
            _ip("netns", "delete", name)

    def shape(self, shape: Shape) -> None:
        """From now on."""
        self._shape = shape

    def _forward(self) -> None:
        due: list[tuple[float, int, int, bytes]] = []
        number = 0
        while not self._stop.is_set():
            now = time.monotonic()
            while due and due[0][0] <= now:
                _, _, side, packet = heapq.heappop(due)
                self._waiting[side] -= 1
                _write(self._ends[1 - side], packet)
            wait = min(0.1, due[0][0] - now) if due else 0.1
            ready, _, _ = select.select(self._ends, [], [], max(0.0, wait))
            for end in ready:
                side = self._ends.index(end)
                for packet in _read_all(end):
                    at = self._arrival(side, len(packet))
                    if at is not None:
                        number += 1
                        heapq.heappush(due, (at, number, side, packet))
                        self._waiting[side] += 1

    def _arrival(self, side: int, size: int) -> float | None:
        """When a packet that goes in now comes out; None: never."""
        shape, counter, now = self._shape, self.counters[side], time.monotonic()
        counter.packets += 1
        counter.octets += size
        if not shape.is_up or self._waiting[side] >= shape.queue_packets or self._chance.random() < shape.loss:
            counter.lost += 1
            return None
        at = now
        if shape.kbit_per_s:
            at = self._free_at[side] = max(now, self._free_at[side]) + size * 8 / (shape.kbit_per_s * 1000)
        return at + shape.delay_ms / 1000


def _open_end(namespace: str, address: str, other: str) -> int:
    home = os.open("/proc/self/ns/net", os.O_RDONLY)
    inside = os.open(f"/run/netns/{namespace}", os.O_RDONLY)
    try:
        _enter(inside)
        end = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(end, _TUNSETIFF, struct.pack("16sH22s", b"wire0", _TUN | _NO_PACKET_INFO, b""))
    finally:
        _enter(home)
        os.close(inside)
        os.close(home)
    for words in (("addr", "add", address, "peer", other, "dev", "wire0"), ("link", "set", "wire0", "up"), ("link", "set", "lo", "up")):
        _ip("-n", namespace, *words)
    return end


def _enter(descriptor: int) -> None:
    library = ctypes.CDLL(None, use_errno=True)
    if library.setns(descriptor, _CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "cannot enter a network namespace")


def _read_all(end: int) -> list[bytes]:
    packets = []
    while True:
        try:
            packets.append(os.read(end, _MAX_PACKET))
        except BlockingIOError:
            return packets


def _write(end: int, packet: bytes) -> None:
    try:
        os.write(end, packet)
    except OSError:  # its queue is full: one more packet is lost
        return


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)
