"""Which colour, icon and words stand for each state. Colour never speaks alone: every pill has an icon and a text."""

from dataclasses import dataclass
from enum import Enum, StrEnum

from covey_server.console.formats import words


class Tone(StrEnum):
    """What a state means to whoever looks."""

    GOOD = "good"
    BUSY = "busy"
    WARN = "warn"
    BAD = "bad"
    QUIET = "quiet"


@dataclass(frozen=True, slots=True)
class Pill:
    """A state as it is shown."""

    tone: Tone
    icon: str  # a symbol of templates/icons.html
    text: str


_ICONS = {Tone.GOOD: "check", Tone.BUSY: "spin", Tone.WARN: "warn", Tone.BAD: "cross", Tone.QUIET: "dot"}
_TONES: dict[Tone, frozenset[str]] = {
    Tone.GOOD: frozenset({"online", "committed", "published", "completed", "succeeded", "accepted", "received", "stored"}),
    Tone.BUSY: frozenset(
        {
            "fetching",
            "verifying",
            "staged",
            "activating",
            "probation",
            "building",
            "running",
            "sent",
            "active",
            "inviting",
            "invited",
            "charge",
        }
    ),
    Tone.WARN: frozenset({"paused", "rolling_back", "missing", "unresponsive", "warning", "stopped", "withdrawn", "cancelled"}),
    Tone.BAD: frozenset({"rolled_back", "refused", "failed", "halted", "revoked", "critical", "quarantined"}),
}
_OWN_ICONS = {
    "paused": "pause",
    "rolled_back": "back",
    "rolling_back": "back",
    "halted": "stop",
    "stopped": "stop",
    "cancelled": "stop",
    "online": "signal",
    "offline": "nosignal",
    "info": "info",
    "critical": "warn",
    "refused": "stop",
    "void": "back",
    "charge": "lock",
}


def pill_of(state: str | Enum, text: str = "") -> Pill:
    """The pill of any state of any capability; an unknown one is shown quietly rather than hidden."""
    name = str(state.value if isinstance(state, Enum) else state)
    tone = next((tone for tone, names in _TONES.items() if name in names), Tone.QUIET)
    return Pill(tone, _OWN_ICONS.get(name, _ICONS[tone]), text or words(name))
