"""What one check found, and how each says it."""

from enum import StrEnum

import msgspec


class Level(StrEnum):
    """How bad it is."""

    OK = "ok"  # as it should be
    SKIPPED = "skipped"  # cannot be looked at here, or is not wanted
    WARNING = "warning"  # works, and will not for ever
    PROBLEM = "problem"  # does not work


class Finding(msgspec.Struct, frozen=True):
    """One check's result. `advice` says what to do; only what is not in order has any."""

    level: Level
    found: str
    advice: str = ""


def ok(found: str) -> Finding:
    """As it should be."""
    return Finding(Level.OK, found)


def skipped(why: str) -> Finding:
    """Not looked at."""
    return Finding(Level.SKIPPED, why)


def warning(found: str, advice: str) -> Finding:
    """Works, and will not for ever."""
    return Finding(Level.WARNING, found, advice)


def problem(found: str, advice: str) -> Finding:
    """Does not work."""
    return Finding(Level.PROBLEM, found, advice)
