"""Whether the kernel ended processes for lack of memory. It tells nobody; it only counts.

The control group of this service counts its own (systemd's MemoryMax makes one); without it the machine's count has to do, which may
also mean somebody else's process.
"""

from pathlib import Path


def count_oom_kills(proc: Path = Path("/proc"), groups: Path = Path("/sys/fs/cgroup")) -> int:
    """So many up to now; only differences mean something. 0 where nobody counts."""
    for file in (*_own_group(proc, groups), proc / "vmstat"):
        try:
            lines = file.read_text("ascii").splitlines()
        except OSError:
            continue
        for line in lines:
            name, _, count = line.partition(" ")
            if name == "oom_kill" and count.isdecimal():
                return int(count)
    return 0


def _own_group(proc: Path, groups: Path) -> list[Path]:
    """Where this process's group may keep its count, version 2 first."""
    try:
        lines = (proc / "self" / "cgroup").read_text("utf-8").splitlines()
    except OSError:
        return []
    paths = {controllers: path.lstrip("/") for _, controllers, path in (line.split(":", 2) for line in lines)}
    found = [groups / paths[""] / "memory.events"] if "" in paths else []
    return found + [groups / "memory" / path / "memory.oom_control" for names, path in paths.items() if "memory" in names.split(",")]
