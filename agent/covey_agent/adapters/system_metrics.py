"""How the machine is, read from /proc and /sys; values that this machine does not offer are left out."""

import os
from pathlib import Path


class SystemMetrics:
    """`read()` gives the values of one `system` reading; CPU load is measured between two calls."""

    def __init__(self, state_dir: Path, *, root: Path = Path("/")) -> None:
        self._state_dir = state_dir
        self._proc = root / "proc"
        self._thermal = root / "sys/class/thermal"
        self._cpu = _read_cpu(self._proc)

    def read(self) -> dict[str, int | float | str]:
        """cpu_percent, memory_bytes (used), temperature_c, disk_free_bytes, rss_bytes (of the agent alone)."""
        values: dict[str, int | float | str] = {}
        before, self._cpu = self._cpu, _read_cpu(self._proc)
        if before and self._cpu and self._cpu[1] > before[1]:
            idle, total = self._cpu[0] - before[0], self._cpu[1] - before[1]
            values["cpu_percent"] = round(100 * (1 - idle / total), 1)
        memory = _read_meminfo(self._proc)
        if "MemTotal" in memory and "MemAvailable" in memory:
            values["memory_bytes"] = memory["MemTotal"] - memory["MemAvailable"]
        temperature = self._read_temperature()
        if temperature is not None:
            values["temperature_c"] = temperature
        disk = os.statvfs(self._state_dir)
        values["disk_free_bytes"] = disk.f_bavail * disk.f_frsize
        rss = _read_rss(self._proc)
        if rss:
            values["rss_bytes"] = rss
        return values

    def _read_temperature(self) -> float | None:
        readings = [_read_number(zone) for zone in self._thermal.glob("thermal_zone*/temp")]
        known = [value for value in readings if value is not None]
        return round(max(known) / 1000, 1) if known else None


def _read_cpu(proc: Path) -> tuple[int, int] | None:
    """Idle and total ticks since boot."""
    fields = _read_text(proc / "stat").split("\n", 1)[0].split()[1:]
    ticks = [int(field) for field in fields if field.isdecimal()]
    if len(ticks) < 5:  # user nice system idle iowait
        return None
    return ticks[3] + ticks[4], sum(ticks[:8])  # the guest columns are already in user and nice


def _read_meminfo(proc: Path) -> dict[str, int]:
    values = {}
    for line in _read_text(proc / "meminfo").splitlines():
        name, _, rest = line.partition(":")
        amount = rest.split()
        if amount and amount[0].isdecimal():
            values[name] = int(amount[0]) * 1024
    return values


def _read_rss(proc: Path) -> int:
    fields = _read_text(proc / "self/statm").split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE") if len(fields) > 1 else 0


def _read_number(path: Path) -> int | None:
    text = _read_text(path).strip()
    return int(text) if text.lstrip("-").isdecimal() else None


def _read_text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:  # not every machine has every file, and some sensors fail to be read now and then
        return ""
