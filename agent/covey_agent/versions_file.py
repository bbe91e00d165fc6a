"""`agent/versions.json` in the state directory: the one truth of an upgrade.

    agent/<version>/       a version, in a virtual environment of its own that borrows what it does not bring from the first installation
    agent/versions.json    which of them is current, which one was before it, whether the current one is on trial, which ones failed

Rules:
- One file, replaced by one rename: current version, fall-back and the number of trial starts change together or not at all.
- The empty name is the first installation, the one that the launcher itself belongs to. It is always there to fall back to.
- Of the standard library alone: the launcher, which is never upgraded, reads this file for every later version. What it does not know in
  it, it leaves out; a file that it cannot read means the first installation.
"""

import fcntl
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, TypeVar

from covey_agent.durable import write_atomically
from covey_agent.versions import FILE_NAME, FOLDER, Failure, Trial, Versions

T = TypeVar("T")


class VersionsFile:
    """Reads and replaces the file. Two programs write it: `covey-agent upgrade` and the launcher; a lock keeps them apart."""

    def __init__(self, state_dir: Path) -> None:
        self.folder = state_dir / FOLDER
        self._path = self.folder / FILE_NAME

    def load(self) -> Versions:
        """What it says; nothing readable: the first installation, as is."""
        try:
            content = json.loads(self._path.read_bytes())
            parts = {"trial": _build_part(Trial, content.get("trial")), "last_failure": _build_part(Failure, content.get("last_failure"))}
            return _build(Versions, content | {"failed": dict(content.get("failed", {}))} | parts)
        except (OSError, ValueError, TypeError, AttributeError):
            return Versions()

    def change(self, rule: Callable[[Versions], Versions]) -> Versions:
        """Replace the content by what `rule` makes of it. Raises OSError."""
        with self.locked("versions.lock"):
            after = rule(self.load())
            write_atomically(self._path, json.dumps(asdict(after), indent=1).encode(), mode=0o600)
        return after

    def path(self, version: str) -> Path:
        """The environment of one version."""
        return self.folder / version

    def python(self, version: str) -> Path:
        """Its interpreter."""
        return self.path(version) / "bin" / "python"

    @contextmanager
    def locked(self, name: str, *, wait: bool = True) -> Iterator[None]:
        """Alone in the block, among programs that use the same name. Raises BlockingIOError, without `wait`."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(self.folder / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            yield
        finally:
            os.close(fd)


def _build(kind: type[T], content: dict[str, Any]) -> T:
    """A value of a dataclass from what a file says, unknown keys left out. Raises TypeError for what is of another type."""
    known = fields(kind)  # type: ignore[arg-type]  # mypy does not know that every `kind` here is a dataclass
    given = {item.name: content[item.name] for item in known if item.name in content}
    for item in known:
        if item.name in given and item.type in {str, int, bool} and type(given[item.name]) is not item.type:
            raise TypeError(f"{item.name} must be {item.type}, got {given[item.name]!r}")
    return kind(**given)


def _build_part(kind: type[T], content: dict[str, Any] | None) -> T | None:
    return _build(kind, content) if content else None
