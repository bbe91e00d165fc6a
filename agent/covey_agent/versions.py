"""Which version of the agent runs: the content of `versions.json` and what changes it. Pure.

Of the standard library alone, like everything that the launcher needs; `versions_file.py` reads and writes it.
"""

from dataclasses import dataclass, field, replace

FOLDER = "agent"
FILE_NAME = "versions.json"
LAUNCHER_VARIABLE = "COVEY_LAUNCHER"  # tells an agent how it can be started anew: PARENT, or the command as JSON
PARENT = "parent"
EXIT_RESTART = 10  # the agent asks its parent to start the current version


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
