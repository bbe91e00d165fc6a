"""Fill the free slot so that at any instant it holds the old content, nothing, or the whole new content.

    slots/<X>/manifest.json    the signed manifest, byte for byte
    slots/<X>/slot.json        which variant of it this is, and why
    slots/<X>/model.onnx|.tflite

Order: build slots/<X>.tmp completely and sync it; move slots/<X> to slots/<X>.old; move <X>.tmp to <X>; sync slots/; remove <X>.old.
A directory that is not empty cannot be replaced by one rename, so between the two moves the slot is empty. That is sound because
only the free slot is ever staged: the serving one is not touched, and an empty free slot is fetched again. Leftovers of a kill
(.tmp, .old) are removed before the next staging and mean nothing to anybody else.
"""

import hashlib
import hmac
import os
import shutil
from pathlib import Path

import msgspec

from covey_contract.release import Runtime, Variant

_READ_BYTES = 1024 * 1024
_MODEL_NAMES = {Runtime.ONNXRUNTIME: "model.onnx", Runtime.LITERT: "model.tflite", Runtime.TFLITE_RUNTIME: "model.tflite"}


class SlotFile(msgspec.Struct, frozen=True):
    """slot.json: what a slot holds."""

    model: str
    version: int
    manifest: str  # digest of manifest.json
    variant: str
    artifact: str  # digest of the model file
    reason: str = ""  # why this variant
    provider: str = ""  # execution provider that was the fastest here; empty: the runtime's default


def model_path(slot_dir: Path, variant: Variant) -> Path:
    """Where a slot holds its model."""
    return slot_dir / _MODEL_NAMES[variant.needs.runtime]


def read_slot_file(slot_dir: Path) -> SlotFile:
    """Raises OSError or msgspec.DecodeError."""
    return msgspec.json.decode((slot_dir / "slot.json").read_bytes(), type=SlotFile)


def stage_slot(slot_dir: Path, manifest: bytes, *, slot: SlotFile, variant: Variant, data: Path) -> None:
    """Make `slot_dir` hold this variant; `data` keeps the artifact until it is done. Raises OSError."""
    building, old = _building(slot_dir), _replaced(slot_dir)
    clear_leftovers(slot_dir)
    building.mkdir(parents=True)
    _write(building / "manifest.json", manifest)
    _write(building / "slot.json", msgspec.json.format(msgspec.json.encode(slot), indent=2))
    _link_or_copy(data, model_path(building, variant))
    sync(building)
    if slot_dir.exists():
        slot_dir.rename(old)
    building.rename(slot_dir)
    sync(slot_dir.parent)
    shutil.rmtree(old, ignore_errors=True)


def clear_leftovers(slot_dir: Path) -> None:
    """Remove what a kill in mid-staging left beside a slot."""
    for leftover in (_building(slot_dir), _replaced(slot_dir)):
        shutil.rmtree(leftover, ignore_errors=True)


def holds(slot_dir: Path, slot: SlotFile, *, variant: Variant) -> bool:
    """Whether a slot already holds exactly this, so that nothing needs to be done."""
    try:
        found = read_slot_file(slot_dir)
        same = (found.manifest, found.variant, found.artifact) == (slot.manifest, slot.variant, slot.artifact)
        manifest = hashlib.sha256((slot_dir / "manifest.json").read_bytes()).hexdigest()
        return same and manifest == slot.manifest and file_digest(model_path(slot_dir, variant)) == slot.artifact
    except (OSError, msgspec.DecodeError):
        return False


def file_digest(path: Path) -> str:
    """sha256 of a file in lower-case hex. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def copy_verified(source: Path, target: Path, *, digest: str) -> bool:
    """Copy a file and return whether the copy, as it was written, has this digest; if not, there is no target."""
    hasher = hashlib.sha256()
    with source.open("rb") as reading, target.open("wb") as writing:
        while block := reading.read(_READ_BYTES):
            hasher.update(block)
            writing.write(block)
        writing.flush()
        os.fsync(writing.fileno())
    if hmac.compare_digest(hasher.hexdigest(), digest):
        return True
    target.unlink()
    return False


def sync(path: Path) -> None:
    """fsync a file or a directory."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _building(slot_dir: Path) -> Path:
    return slot_dir.with_name(f"{slot_dir.name}.tmp")


def _replaced(slot_dir: Path) -> Path:
    return slot_dir.with_name(f"{slot_dir.name}.old")


def _write(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    sync(path)


def _link_or_copy(source: Path, target: Path) -> None:
    sync(source)
    try:
        target.hardlink_to(source)
    except OSError:  # the file system cannot link, or the source is on another one
        shutil.copyfile(source, target)
        sync(target)
