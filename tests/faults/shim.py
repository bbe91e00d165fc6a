"""The shim from Python: compile it, tell it what to do, read what it saw."""

import ctypes
import mmap
import subprocess
from collections import Counter
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from pathlib import Path

SOURCE = Path(__file__).with_name("shim.c")


class Mode(IntEnum):
    """What happens at the armed point."""

    OFF = 0
    KILL_BEFORE = 1  # the whole tree, before the call
    KILL_AFTER = 2  # the whole tree, after the call
    KILL_SELF = 3  # only the process that calls
    KILL_TORN = 4  # the whole tree, when half of the bytes are written; before the call if it writes none
    FAIL_FROM = 5  # from that point on calls fail with `error`


class Kind(IntFlag):
    """Which calls fail."""

    WRITES = 1
    CREATES = 2
    REMOVES = 4
    SYNCS = 8


ALL_KINDS = Kind.WRITES | Kind.CREATES | Kind.REMOVES | Kind.SYNCS


@dataclass(frozen=True, slots=True, order=True)
class Point:
    """The n-th time (from 1) that `role` makes `call` on `path`."""

    role: str
    call: str
    path: str
    n: int = 1

    def __str__(self) -> str:
        return f"{self.role} {self.call} {self.path or '.'} #{self.n}"


@dataclass(frozen=True, slots=True)
class Call:
    """One line of the log."""

    role: str
    call: str
    path: str
    offset: int
    length: int


class _Control(ctypes.Structure):
    _fields_ = (
        ("mode", ctypes.c_uint32),
        ("occurrence", ctypes.c_uint32),
        ("matched", ctypes.c_uint32),
        ("fired", ctypes.c_uint32),
        ("error", ctypes.c_uint32),
        ("kinds", ctypes.c_uint32),
        ("root", ctypes.c_int32),
        ("pad", ctypes.c_uint32),
        ("role", ctypes.c_char * 32),
        ("call", ctypes.c_char * 32),
        ("path", ctypes.c_char * 448),
        ("folder", ctypes.c_char * 512),
        ("log", ctypes.c_char * 512),
    )


class Control:
    """The shared file of one process tree."""

    def __init__(self, path: Path, *, folder: Path, log: Path) -> None:
        self.path = path
        self._log = log
        path.write_bytes(bytes(ctypes.sizeof(_Control)))
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), ctypes.sizeof(_Control))
        self._control = _Control.from_buffer(self._map)
        self._control.folder = str(folder).encode()
        self._control.log = str(log).encode()

    @property
    def fired(self) -> bool:
        """Whether the armed point was reached."""
        return bool(self._control.fired)

    def arm(self, point: Point | None, mode: Mode, *, error: int = 0, kinds: Kind = ALL_KINDS) -> None:
        """From now on; without a point, FAIL_FROM begins at once."""
        control = self._control
        control.mode = Mode.OFF
        control.role, control.call, control.path = (
            (point.role.encode(), point.call.encode(), point.path.encode()) if point else (b"", b"", b"")
        )
        control.occurrence = point.n if point else 0
        control.matched, control.error, control.kinds = 0, error, kinds
        control.fired = 1 if mode is Mode.FAIL_FROM and point is None else 0
        control.mode = mode

    def disarm(self) -> None:
        """Only look."""
        self._control.mode = Mode.OFF

    def forget(self) -> None:
        """Begin a new log."""
        self._log.unlink(missing_ok=True)

    def calls(self) -> list[Call]:
        """Everything since `forget`."""
        calls = []
        for line in self._log.read_text(errors="replace").splitlines() if self._log.exists() else ():
            role, call, path, offset, length = line.split("\t")
            calls.append(Call(role, call, path, int(offset), int(length)))
        return calls

    def points(self) -> list[Point]:
        """Every point that was passed since `forget`, in order."""
        seen: Counter[tuple[str, str, str]] = Counter()
        points = []
        for call in self.calls():
            if call.call != "from":
                key = (call.role, call.call, call.path)
                seen[key] += 1
                points.append(Point(*key, n=seen[key]))
        return points


def compile_shim(folder: Path) -> Path:
    """The shared object."""
    target = folder / "shim.so"
    subprocess.run(
        ["cc", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o", str(target), str(SOURCE), "-ldl"],
        check=True,
        capture_output=True,
    )
    return target
