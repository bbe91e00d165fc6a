"""What a process uses, as the kernel counts it."""

import os
from collections.abc import Iterable
from pathlib import Path


def pss_kb(pid: int) -> int:
    """Proportional set size: what it has alone, and its share of what it has with others."""
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/smaps_rollup").read_text("ascii").splitlines()[1:])
    return int(lines["Pss"].split()[0])


def peak_rss_kb(pid: int) -> int:
    """The most resident memory that it ever had."""
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text("utf-8").splitlines())
    return int(lines["VmHWM"].split()[0])


def alone_kb(pids: Iterable[int]) -> int:
    """What a tree of processes would have if it were alone on the machine: its own pages, and each shared one counted once within the tree.

    Pages that several of the tree's processes share cannot be told apart from outside, so the largest one's shared part stands for all.
    """
    private, shared = 0, 0
    for pid in pids:
        lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/smaps_rollup").read_text("ascii").splitlines()[1:])
        own = sum(int(lines[name].split()[0]) for name in ("Private_Clean", "Private_Dirty"))
        private += own
        shared = max(shared, int(lines["Rss"].split()[0]) - own)
    return private + shared


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
