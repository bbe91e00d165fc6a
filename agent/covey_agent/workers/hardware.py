"""What this machine is, read from the kernel. The parsers are pure."""

import os
import platform
import re
from pathlib import Path

# Of the hundred flags that a kernel lists, those that a manifest may ask for: they decide which kernels a runtime can use.
_USEFUL_FLAGS = re.compile(r"(avx|sse|ssse|amx|asimd|vfp|sve)\w*|fma|f16c|neon|sme2?|fphp|i8mm|bf16")
_CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def parse_cpu_flags(cpuinfo: str) -> list[str]:
    """The useful flags of the first processor in /proc/cpuinfo: `flags` on x86, `Features` on ARM."""
    match = re.search(r"^(?:flags|Features)\s*:\s*(.*)$", cpuinfo, re.MULTILINE)
    return sorted(flag for flag in set(match.group(1).split()) if _USEFUL_FLAGS.fullmatch(flag)) if match else []


def parse_memory_total(meminfo: str) -> int:
    """MemTotal of /proc/meminfo in bytes, 0 if it is not there."""
    match = re.search(r"^MemTotal:\s+(\d+) kB$", meminfo, re.MULTILINE)
    return int(match.group(1)) * 1024 if match else 0


def read_cpu_flags() -> list[str]:
    """Of this machine."""
    return parse_cpu_flags(_read(Path("/proc/cpuinfo")))


def read_memory_total() -> int:
    """Of this machine, or of the container that this runs in if that is less."""
    total = parse_memory_total(_read(Path("/proc/meminfo")))
    for path in _CGROUP_LIMITS:
        limit = _read(path).strip()
        if limit.isdecimal():
            total = min(total, int(limit))
    return total


def read_cpu_count() -> int:
    """The processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def read_system() -> str:
    """The operating system in a few words."""
    release = _read(Path("/etc/os-release"))
    match = re.search(r'^PRETTY_NAME="?([^"\n]*)', release, re.MULTILINE)
    name = match.group(1) if match else platform.system()
    return f"{name}, {platform.release()}"


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
