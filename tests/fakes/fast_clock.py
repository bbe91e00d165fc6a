"""Time that passes as fast as a test wants, for a real, unchanged process: see `fast_clock.c`.

clock = FastClock(tmp_path)
subprocess.Popen([...], env=os.environ | clock.environment(only="covey_agent.cli"))
clock.run(times=1000)
"""

import os
import shutil
import struct
import subprocess
import time
from pathlib import Path

SOURCE = Path(__file__).with_name("fast_clock.c")


class FastClock:
    """The library, and the file by which it is told how fast to go."""

    def __init__(self, folder: Path) -> None:
        """Compiles the library; needs gcc."""
        self._library, self._file = folder / "fast_clock.so", folder / "fast_clock.bin"
        subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-Wall", "-o", str(self._library), str(SOURCE), "-ldl", "-pthread"], check=True)
        self._since, self._added, self._times = time.monotonic_ns(), 0, 1.0
        self._write()

    @staticmethod
    def is_possible() -> bool:
        """Whether this machine can compile it."""
        return shutil.which("gcc") is not None

    def environment(self, *, only: str = "") -> dict[str, str]:
        """For the program; `only` text of the command lines that it is meant for, children included."""
        meant = {"FAST_CLOCK_ONLY": only} if only else {}
        return {"LD_PRELOAD": str(self._library), "FAST_CLOCK": str(self._file)} | meant

    def run(self, *, times: float) -> None:
        """From now on, so many seconds pass in one."""
        now = time.monotonic_ns()
        self._added = int(self.added_s() * 1e9)
        self._since, self._times = now, times
        self._write()

    def added_s(self) -> float:
        """How much more time has passed there than here."""
        return (self._added + (time.monotonic_ns() - self._since) * (self._times - 1)) / 1e9

    def _write(self) -> None:
        data = struct.pack("=3q", self._since, self._added, max(1, int(self._times * 1000)))
        fd = os.open(self._file, os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            os.pwrite(fd, data, 0)  # in place: the program has this very page mapped
        finally:
            os.close(fd)
