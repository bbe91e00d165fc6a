"""JSON Schemas of every message, generated from the Structs.

`python -m covey_contract.schema` writes them beside this file, into `schemas/`; a test compares, so a change of the wire shows
in review. They describe the JSON form; bulk messages carry the same fields as MessagePack.
"""

import json
import sys
from pathlib import Path
from typing import Any

import msgspec

from covey_contract import messages, release

FOLDER = Path(__file__).parent / "schemas"

WIRE_TYPES: tuple[type[msgspec.Struct], ...] = (
    messages.Status,
    messages.Reported,
    messages.ReadingBatch,
    messages.Ack,
    messages.WantChunks,
    messages.WantMetadata,
    messages.MetadataPart,
    messages.DeltaOffer,
    messages.DownloadOffer,
    messages.Chunk,
    messages.Signed,
    messages.Desired,
    messages.InviteToRun,
    messages.StopRun,
    messages.ReleaseQuarantine,
    messages.RotateCertificate,
    messages.Decommission,
    messages.UpgradeAgent,
    messages.Reply,
    messages.Renewal,
    messages.RenewalAnswer,
    release.Release,
)


def schema_of(kind: type[msgspec.Struct]) -> dict[str, Any]:
    """The JSON Schema (2020-12) of one wire type."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **msgspec.json.schema(kind)}


def schema_text(kind: type[msgspec.Struct]) -> str:
    """The schema as it stands in its file."""
    return json.dumps(schema_of(kind), indent=2, sort_keys=True) + "\n"


def file_of(kind: type[msgspec.Struct]) -> Path:
    """Where a type's schema is kept."""
    return FOLDER / f"{kind.__name__}.json"


def main() -> int:
    """Write every schema."""
    FOLDER.mkdir(exist_ok=True)
    for kind in WIRE_TYPES:
        file_of(kind).write_text(schema_text(kind), "utf-8")
    sys.stdout.write(f"wrote {len(WIRE_TYPES)} schemas\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
