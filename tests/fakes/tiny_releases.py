"""Releases around tiny models, and slots filled with them as the deploy child would fill them."""

from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from covey_agent.workers.stage import SlotFile, stage_slot
from covey_contract.codec import digest_of, encode
from covey_contract.limits import CHUNK_BYTES
from covey_contract.release import Bounds, Golden, Lineage, Needs, Quality, Release, Runtime, TensorSpec, Variant, pack_floats

Floats = NDArray[np.float32]


def make_variant(
    data: bytes, *, name: str = "onnx-float32", runtime: Runtime = Runtime.ONNXRUNTIME, inputs: int = 2, outputs: int = 2
) -> Variant:
    """A float32 variant [n, inputs] -> [n, outputs] whose artifact is `data`; adapt the rest by msgspec.structs.replace."""
    batch = -1 if runtime is Runtime.ONNXRUNTIME else 1
    return Variant(
        name=name,
        precision=name.rpartition("-")[2],
        needs=Needs(runtime=runtime, min_runtime_version="1.0"),
        artifact=digest_of(data),
        length=len(data),
        chunks=[digest_of(data[start : start + CHUNK_BYTES]) for start in range(0, len(data), CHUNK_BYTES)],
        input=TensorSpec(name="input", dtype="float32", shape=[batch, inputs]),
        output=TensorSpec(name="output", dtype="float32", shape=[batch, outputs]),
        golden_tolerance=0.01,
        quality=Quality(accuracy=0.9, accuracy_drop=0.0, relative_error=0.0, latency_ms=0.1, samples=100),
    )


def make_release(
    variants: Sequence[Variant],
    *,
    inputs: Floats,
    outputs: Floats,
    model: str = "tiny",
    version: int = 1,
    labels: Sequence[str] = ("no", "yes"),
) -> Release:
    """A release whose golden samples are `inputs` with `outputs`."""
    golden = Golden(
        input_shape=list(inputs.shape),
        output_shape=list(outputs.shape),
        inputs=pack_floats(inputs.astype("<f4").tobytes()),
        outputs=pack_floats(outputs.astype("<f4").tobytes()),
    )
    return Release(
        model=model,
        version=version,
        created_at=1,
        labels=list(labels),
        variants=list(variants),
        golden=golden,
        bounds=Bounds(),
        lineage=Lineage(source="import"),
    )


def fill_slot(slot_dir: Path, release: Release, *, variant: str, data: bytes) -> Path:
    """Stage one variant of a release; returns the slot directory."""
    manifest = encode(release)
    chosen = next(each for each in release.variants if each.name == variant)
    slot = SlotFile(release.model, release.version, digest_of(manifest), chosen.name, chosen.artifact, "because a test says so")
    source = slot_dir.parent / f"{slot_dir.name}.artifact"
    source.parent.mkdir(parents=True, exist_ok=True)
    source.write_bytes(data)
    stage_slot(slot_dir, manifest, slot=slot, variant=chosen, data=source)
    source.unlink()
    return slot_dir


def replace_variant(release: Release, **changes: object) -> Release:
    """The release with its first variant changed."""
    return msgspec.structs.replace(release, variants=[msgspec.structs.replace(release.variants[0], **changes), *release.variants[1:]])
