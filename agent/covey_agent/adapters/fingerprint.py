"""What this machine and its runtimes are, in one short text that changes when either does; without importing or starting anything."""

import hashlib
import os
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from covey_agent import __version__

_RUNTIMES = re.compile(r"(onnxruntime\w*|ai_edge_litert|tflite_runtime|numpy)-[^/]*\.dist-info", re.IGNORECASE)
_CPU = re.compile(r"^(?:model name|flags|Features|CPU part)\s*:.*$", re.MULTILINE)
_MEMORY = re.compile(r"^MemTotal:.*$", re.MULTILINE)


def read_fingerprint(*, packages: Sequence[str] | None = None, root: Path = Path("/")) -> str:
    """Of the agent's version, Python, the kernel, the processor, the memory and the installed runtimes."""
    system = os.uname()
    parts = [__version__, sys.version, system.sysname, system.release, system.machine]
    parts += sorted(set(_CPU.findall(_read(root / "proc/cpuinfo"))))
    parts += _MEMORY.findall(_read(root / "proc/meminfo"))
    parts += [_read(root / name) for name in ("sys/fs/cgroup/memory.max", "sys/fs/cgroup/memory/memory.limit_in_bytes")]
    parts += sorted(_find_runtimes(sys.path if packages is None else packages))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _find_runtimes(folders: Iterable[str]) -> set[str]:
    found = set()
    for folder in folders:
        try:
            with os.scandir(folder or ".") as entries:
                found |= {entry.name for entry in entries if _RUNTIMES.fullmatch(entry.name)}
        except OSError:
            continue
    return found


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
