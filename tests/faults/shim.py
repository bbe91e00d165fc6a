"""The shim of shim.c: built with the machine's C compiler, put into an agent's process tree, and told when to strike."""

import mmap
import os
import re
import shutil
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

SOURCE = Path(__file__).with_name("shim.c")
_CONTROL = struct.Struct("<5I")  # struct control of shim.c
_LINE = re.compile(r"^(\d+) (\d+) ([a-z-]+) (\d+) (.*)$", re.MULTILINE)


class Fault(IntEnum):
    """What happens at the chosen boundary; the numbers are shim.c's."""

    NONE = 0
    KILL_TREE = 1  # a power cut: the agent, the caller and all other children get SIGKILL
    KILL_SELF = 2  # only the calling process gets SIGKILL
    TORN = 3  # half of the bytes are written, then a power cut
    FULL = 4  # from here on nothing finds room
    READ_ONLY = 5  # from here on nothing may change


@dataclass(frozen=True, slots=True)
class Boundary:
    """One call that changes the disk."""

    number: int
    pid: int
    call: str
    size: int
    path: str  # below the state directory

    @property
    def place(self) -> str:
        """The path with its names of chance left out, so that runs can be compared."""
        return re.sub(r"[0-9a-f]{64}", "<digest>", re.sub(r"\.[a-z0-9_]{8}$", ".<random>", self.path))


def find_compiler() -> str | None:
    """The machine's C compiler."""
    return shutil.which("cc") or shutil.which("gcc")


def build_shim(folder: Path) -> Path:
    """Compile the shim; raises RuntimeError with what the compiler says."""
    target = folder / "shim.so"
    compiler = find_compiler()
    if compiler is None:
        raise RuntimeError("the kill harness needs a C compiler: install gcc and libc6-dev")
    command = [compiler, "-O2", "-fPIC", "-shared", "-o", str(target), str(SOURCE), "-ldl"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"the shim does not compile: {done.stderr}")
    return target


class Strike:
    """The shared memory of one run of one tree."""

    def __init__(self, memory: mmap.mmap, log: Path, environment: dict[str, str]) -> None:
        self._memory = memory
        self._log = log
        self.environment = environment

    @property
    def count(self) -> int:
        """Boundaries so far."""
        return self._read()[0]

    @property
    def has_struck(self) -> bool:
        """Whether the fault has happened."""
        return bool(self._read()[4])

    def end_fault(self) -> None:
        """There is room again, or the disk can be written again."""
        self._memory[8:12] = struct.pack("<I", Fault.NONE)

    def boundaries(self) -> list[Boundary]:
        """Every boundary so far, in order."""
        text = self._log.read_text("utf-8", "replace") if self._log.exists() else ""
        found = [Boundary(int(number), int(pid), call, int(size), path) for number, pid, call, size, path in _LINE.findall(text)]
        return sorted(found, key=lambda boundary: boundary.number)

    def _read(self) -> tuple[int, ...]:
        return _CONTROL.unpack(self._memory[: _CONTROL.size])


@contextmanager
def plan_strike(shim: Path, folder: Path, work: Path, *, fault: Fault = Fault.NONE, at: int = 0) -> Iterator[Strike]:
    """A strike at boundary `at` of what happens below `folder`; `work` holds the shared file and the log."""
    work.mkdir(parents=True, exist_ok=True)
    control, log = work / "control", work / "boundaries.log"
    log.unlink(missing_ok=True)
    control.write_bytes(_CONTROL.pack(0, at, fault, 0, 0))
    environment = {
        "LD_PRELOAD": str(shim),
        "COVEY_FAULT_CONTROL": str(control),
        "COVEY_FAULT_FOLDER": os.path.realpath(folder),
        "COVEY_FAULT_LOG": str(log),
    }
    with control.open("r+b") as file, mmap.mmap(file.fileno(), _CONTROL.size) as memory:
        yield Strike(memory, log, environment)
