"""Read a slot and load its model: what check and infer both do first, and trust nothing for."""

from dataclasses import dataclass
from pathlib import Path

import msgspec

from covey_agent.workers.errors import ModelError
from covey_agent.workers.stage import SlotFile, file_digest, model_path, read_slot_file
from covey_contract.codec import decode_release, digest_of
from covey_contract.errors import ContractError
from covey_contract.release import Release, Variant


@dataclass(frozen=True, slots=True)
class SlotContent:
    """A slot whose files are what their digests say."""

    slot: SlotFile
    release: Release
    variant: Variant
    model: Path


def read_slot(slot_dir: Path) -> SlotContent:
    """Read slot.json and the manifest, and hash the model file again: disks rot. Raises ModelError."""
    try:
        slot = read_slot_file(slot_dir)
        manifest = (slot_dir / "manifest.json").read_bytes()
        if digest_of(manifest) != slot.manifest:
            raise ModelError(f"manifest.json has digest {digest_of(manifest)[:12]}, expected {slot.manifest[:12]}")
        release = decode_release(manifest)
        variant = next((variant for variant in release.variants if variant.name == slot.variant), None)
        if variant is None or variant.artifact != slot.artifact:
            raise ModelError(f"the manifest has no variant {slot.variant} with artifact {slot.artifact[:12]}")
        model = model_path(slot_dir, variant)
        digest = file_digest(model)
    except (OSError, msgspec.DecodeError, ContractError) as exc:
        raise ModelError(f"the slot cannot be read: {exc}") from exc
    if digest != variant.artifact:
        raise ModelError(f"{model.name} has digest {digest[:12]}, expected {variant.artifact[:12]}")
    return SlotContent(slot, release, variant, model)
