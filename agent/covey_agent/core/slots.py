"""The two slots: which is free, what one holds."""

from pathlib import PurePath

from msgspec import Struct

from covey_contract.messages import SlotReport
from covey_contract.release import Bounds

SLOTS = ("A", "B")


class SlotNote(Struct, frozen=True):
    """`slot.json`: what the deploy child wrote into a slot."""

    model: str = ""
    version: int = 0
    manifest: str = ""
    variant: str = ""
    artifact: str = ""
    reason: str = ""


class ManifestBounds(Struct, frozen=True):
    """The only part of a release manifest that the idle agent needs; everything else is skipped, not unpacked."""

    bounds: Bounds


def free_slot(committed: str) -> str:
    """The slot that a deployment may fill: never the proven one."""
    return "B" if committed == "A" else "A"


def slot_dir(state_dir: PurePath, slot: str) -> PurePath:
    """Where a slot's files are."""
    if slot not in SLOTS:
        raise ValueError(f"a slot is one of {', '.join(SLOTS)}, got {slot!r}")
    return state_dir / "slots" / slot


def report_slot(slot: str, note: SlotNote | None) -> SlotReport:
    """What the server is told about one slot."""
    if note is None:
        return SlotReport(slot=slot)
    return SlotReport(
        slot=slot, model=note.model, version=note.version, manifest=note.manifest, variant=note.variant, artifact=note.artifact
    )
