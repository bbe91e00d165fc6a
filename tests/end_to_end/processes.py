"""What the end-to-end tests ask of the machine: which processes belong to a run, what a log says at its end, waiting."""

import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

import psutil

T = TypeVar("T")
FAMILY = "COVEY_TEST_FAMILY"  # an environment variable that every process of a run inherits, whatever its command line says


def living_family(mark: str, folder: Path) -> list[str]:
    """Command lines of every living process that carries the mark, or that names the folder. The tests' own process is not one."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace").strip()
            environment = (process / "environ").read_bytes().split(b"\0")
        except OSError:  # it has ended meanwhile, or belongs to somebody else
            continue
        is_marked = f"{FAMILY}={mark}".encode() in environment
        if words and int(process.name) != os.getpid() and (is_marked or str(folder) in words):
            found.append(f"{process.name}: {words}")
    return found


def alive(processes: Iterable[psutil.Process]) -> list[str]:
    """Those that still run, in words; a zombie does not."""
    return [repr(process) for process in processes if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]


def family_of(pid: int) -> list[psutil.Process]:
    """A process and all below it."""
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]


def log_ends(folder: Path, *, lines: int = 15) -> str:
    """The ends of all logs in a folder, for the message of a failed test."""
    parts = []
    for path in sorted(folder.glob("*.log")):
        text = path.read_text("utf-8", "replace").splitlines()
        parts.append("\n".join([f"--- {path.name}", *text[-lines:]]))
    return "\n".join(parts)


def wait_for(
    what: str, probe: Callable[[], T | None], *, timeout_s: float, explain: Callable[[], str] = lambda: "", poll_s: float = 0.05
) -> T:
    """Ask until there is something; fail with the logs if it never comes."""
    deadline = time.monotonic() + timeout_s
    while True:
        found = probe()
        if found:
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {timeout_s:.0f} s in vain for: {what}\n{explain()}")
        time.sleep(poll_s)
