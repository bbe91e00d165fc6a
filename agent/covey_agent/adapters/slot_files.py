"""What lies in the slots: notes and bounds, read; and which one is proven, written as a second copy of what the database knows."""

import logging
from pathlib import Path

import msgspec

from covey_agent.core.slots import SLOTS, ManifestBounds, SlotNote, slot_dir
from covey_agent.durable import fsync_folder, write_atomically
from covey_contract.limits import MAX_MANIFEST_BYTES
from covey_contract.messages import Quarantined
from covey_contract.release import Bounds

__all__ = ["Proven", "SlotFiles", "fsync_folder", "write_atomically"]
logger = logging.getLogger(__name__)
_ARTIFACTS = ("model.onnx", "model.tflite")


class Proven(msgspec.Struct, frozen=True):
    """`slots/proven.json`: enough to serve, and not to repeat a known mistake, when the database is lost."""

    committed: str = ""
    quarantine: list[Quarantined] = msgspec.field(default_factory=list)


class SlotFiles:
    """The `slots` folder of a state directory."""

    def __init__(self, state_dir: Path) -> None:
        self._state_dir = state_dir
        self._proven = state_dir / "slots" / "proven.json"

    def path(self, slot: str) -> Path:
        """The folder of one slot."""
        return Path(slot_dir(self._state_dir, slot))

    def note(self, slot: str) -> SlotNote | None:
        """What a slot holds; None if it is empty or incomplete."""
        path = self.path(slot) / "slot.json"
        try:
            note = msgspec.json.decode(path.read_bytes(), type=SlotNote)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.DecodeError) as exc:
            logger.warning("the note of slot %s is unreadable: %s", slot, exc)
            return None
        return note if note.artifact else None

    def bounds(self, slot: str) -> Bounds:
        """What the release in a slot is held to in probation; the contract's defaults if its manifest is unreadable."""
        try:
            with (self.path(slot) / "manifest.json").open("rb") as file:
                data = file.read(MAX_MANIFEST_BYTES + 1)
            return msgspec.json.decode(data, type=ManifestBounds).bounds
        except (OSError, msgspec.DecodeError) as exc:
            logger.warning("the manifest of slot %s is unreadable, default bounds apply: %s", slot, exc)
            return Bounds()

    def artifact(self, slot: str) -> str:
        """The path of a slot's artifact, or ""."""
        if slot not in SLOTS:
            return ""
        return next((str(path) for name in _ARTIFACTS if (path := self.path(slot) / name).exists()), "")

    def is_filled(self, slot: str) -> bool:
        """Whether a slot has a note and an artifact; that they are whole is found out by the worker that loads them."""
        return self.note(slot) is not None and bool(self.artifact(slot))

    def load_proven(self) -> Proven:
        """The second copy; empty if there is none."""
        try:
            return msgspec.json.decode(self._proven.read_bytes(), type=Proven)
        except FileNotFoundError:
            return Proven()
        except (OSError, msgspec.DecodeError) as exc:
            logger.warning("%s is unreadable: %s", self._proven, exc)
            return Proven()

    def save_proven(self, proven: Proven) -> bool:
        """Replace the second copy by one rename. False: not now; that is not fatal, since the database has the truth."""
        try:
            write_atomically(self._proven, msgspec.json.encode(proven), mode=0o600)
        except OSError as exc:
            logger.warning("cannot write %s: %s", self._proven, exc)
            return False
        return True
