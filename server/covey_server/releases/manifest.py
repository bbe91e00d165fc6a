"""From accepted variants to the manifest that is signed. Pure but for reading the artifacts' bytes to name their chunks."""

import hashlib
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path

from covey_contract import limits
from covey_contract.codec import encode
from covey_contract.messages import Scalar
from covey_contract.release import Bounds, Golden, Lineage, Needs, Release, Variant
from covey_server.clock import to_millis
from covey_server.errors import InvalidInputError
from covey_server.parts import BlobStore
from covey_server.releases.rules import Candidate


def chunk_digests(path: Path) -> list[str]:
    """sha256 of each chunk of a file, in order."""
    digests = []
    with path.open("rb") as file:
        while chunk := file.read(limits.CHUNK_BYTES):
            digests.append(hashlib.sha256(chunk).hexdigest())
    return digests


def assemble(
    candidates: Iterable[Candidate],
    *,
    model: str,
    version: int,
    labels: list[str],
    golden: Golden,
    bounds: Bounds,
    lineage: Lineage,
    custom: dict[str, Scalar],
    now: datetime,
    blobs: BlobStore,
) -> bytes:
    """The manifest of one release, with every accepted variant in it. Raises PayloadTooLargeError if it does not fit."""
    manifest = Release(
        model=model,
        version=version,
        created_at=to_millis(now),
        labels=labels,
        variants=[_variant(candidate, blobs) for candidate in candidates if candidate.accepted],
        golden=golden,
        bounds=bounds,
        lineage=lineage,
        custom=custom,
    )
    return encode(manifest)


def _variant(candidate: Candidate, blobs: BlobStore) -> Variant:
    if candidate.input is None or candidate.output is None:
        raise InvalidInputError(f"variant {candidate.name} has no description of its input and output")
    return Variant(
        name=candidate.name,
        precision=candidate.precision,
        needs=Needs(runtime=candidate.runtime, min_runtime_version=candidate.min_runtime_version, memory=candidate.memory),
        artifact=candidate.artifact,
        length=candidate.length,
        chunks=chunk_digests(blobs.path(candidate.artifact)),
        input=candidate.input,
        output=candidate.output,
        golden_tolerance=candidate.golden_tolerance,
        quality=candidate.quality,
    )
