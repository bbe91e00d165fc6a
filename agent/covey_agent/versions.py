"""Which version of the agent runs: `agent/versions.json` in the state directory, the one truth of an upgrade.

    agent/<version>/       a version, in a virtual environment of its own that borrows what it does not bring from the first installation
    agent/versions.json    which of them is current, which one was before it, whether the current one is on trial, which ones failed

Rules:
- One file, replaced by one rename: current version, fall-back and the number of trial starts change together or not at all.
- The empty name is the first installation, the one that the launcher itself belongs to. It is always there to fall back to.
- Of the standard library alone: the launcher, which is never upgraded, reads this file for every later version. What it does not know in
  it, it keeps out of; a file that it cannot read means the first installation.
"""

import fcntl
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from covey_agent.durable import write_atomically

FOLDER = "agent"
FILE_NAME = "versions.json"
LAUNCHER_VARIABLE = "COVEY_LAUNCHER"  # tells an agent how it can be started anew: PARENT, or the command as JSON
PARENT = "parent"
EXIT_RESTART = 10  # the agent asks its parent to start the current version
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Trial:
    """The current version has yet to prove itself."""

    previous: str  # the version to fall back to
    starts: int = 0  # that were begun, this one included
    was_connected: bool = False  # whether the version before was, when the trial began: then this one must be able to


@dataclass(frozen=True, slots=True)
class Failure:
    """How the last trial that failed went, for the server to be told once."""

    version: str
    reason: str
    at: int  # ms


@dataclass(frozen=True, slots=True)
class Versions:
    """The content of the file."""

    current: str = ""
    previous: str = ""  # still on disk
    trial: Trial | None = None
    failed: dict[str, str] = field(default_factory=dict)  # version -> reason; none of them is tried again by itself
    last_failure: Failure | None = None


class VersionsFile:
    """Reads and replaces the file. Two programs write it: `covey-agent upgrade` and the launcher; a lock keeps them apart."""

    def __init__(self, state_dir: Path) -> None:
        self.folder = state_dir / FOLDER
        self._path = self.folder / FILE_NAME

    def load(self) -> Versions:
        """What it says; nothing readable: the first installation, as is."""
        try:
            content = json.loads(self._path.read_bytes())
            return _build(Versions, content | {"trial": _build_optional(Trial, content), "last_failure": _build_failure(content)})
        except (OSError, ValueError, TypeError, AttributeError):
            return Versions()

    def change(self, rule: Callable[[Versions], Versions]) -> Versions:
        """Replace the content by what `rule` makes of it. Raises OSError."""
        with self._locked():
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
    def _locked(self) -> Iterator[None]:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(self.folder / "versions.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)


def begin_trial(versions: Versions, version: str, *, was_connected: bool) -> Versions:
    """Switch to `version`, on trial."""
    failed = {name: reason for name, reason in versions.failed.items() if name != version}
    return replace(
        versions,
        current=version,
        previous=versions.current,
        trial=Trial(previous=versions.current, was_connected=was_connected),
        failed=failed,
    )


def count_start(versions: Versions, by: int = 1) -> Versions:
    """One more start of the trial; -1 for one that says nothing about the version."""
    trial = versions.trial
    return replace(versions, trial=replace(trial, starts=max(0, trial.starts + by))) if trial else versions


def prove(versions: Versions) -> Versions:
    """The trial is over: the current version stays."""
    return replace(versions, trial=None)


def fall_back(versions: Versions, reason: str, *, at: int) -> Versions:
    """The trial is over: the version before is current again, and this one is not tried again by itself."""
    if versions.trial is None:
        return versions
    return replace(
        versions,
        current=versions.trial.previous,
        previous=versions.trial.previous,
        trial=None,
        failed={**versions.failed, versions.current: reason},
        last_failure=Failure(versions.current, reason, at),
    )


def _build(kind: type[T], content: dict[str, Any]) -> T:
    """A value of a dataclass from what a file says, unknown keys left out."""
    return kind(**{item.name: content[item.name] for item in fields(kind) if item.name in content})  # type: ignore[arg-type]  # mypy does not know that every `kind` here is a dataclass


def _build_optional(kind: type[T], content: dict[str, Any]) -> T | None:
    return _build(kind, content["trial"]) if content.get("trial") else None


def _build_failure(content: dict[str, Any]) -> Failure | None:
    return _build(Failure, content["last_failure"]) if content.get("last_failure") else None
