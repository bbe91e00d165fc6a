"""What a process uses, as the kernel counts it."""

import os
from pathlib import Path


def pss_kb(pid: int) -> int:
    """Proportional set size: what it has alone, and its share of what it has with others."""
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/smaps_rollup").read_text("ascii").splitlines()[1:])
    return int(lines["Pss"].split()[0])


def cpu_s(pid: int) -> float:
    """User and system time so far."""
    fields = Path(f"/proc/{pid}/stat").read_text("ascii").rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def written_bytes(pid: int) -> int:
    """What it has caused to be written to disks; whole pages."""
    lines = dict(line.split(": ") for line in Path(f"/proc/{pid}/io").read_text("ascii").splitlines())
    return int(lines["write_bytes"]) - int(lines["cancelled_write_bytes"])


def open_files(pid: int) -> int:
    """Its descriptors."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))
