"""Folders that `covey release import` takes, turned into what the API takes.

Two kinds: our own `release.json` beside its artifacts (`releases/requests.py: ImportSpec`), and what `covey-quantize --out DIR`
leaves, whose `report.json` holds the measurements.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from covey_contract.release import Quality
from covey_server.cli.output import CommandError, ExitCode
from covey_server.errors import InvalidInputError
from covey_server.releases.quantizer import QuantizeReport, VariantReport
from covey_server.releases.requests import ImportedVariant, ImportSpec, decode_import_spec


@dataclass(frozen=True, slots=True)
class ImportFolder:
    """What is sent."""

    description: bytes
    artifacts: list[Path]


def read_import(folder: Path, *, model: str | None, version: int | None, note: str) -> ImportFolder:
    """Read a folder. Raises CommandError."""
    try:
        if (folder / "release.json").is_file():
            spec = decode_import_spec((folder / "release.json").read_bytes())
        elif (folder / "report.json").is_file():
            spec = _from_report((folder / "report.json").read_bytes(), model=model)
        else:
            raise CommandError(f"{folder} holds neither release.json nor report.json", ExitCode.USAGE)
    except InvalidInputError as exc:
        raise CommandError(str(exc), ExitCode.USAGE) from exc
    changes: dict[str, Any] = {"model": model or spec.model, "version": version or spec.version, "note": note or spec.note}
    artifacts = [folder / name for name in sorted({variant.file for variant in spec.variants})]
    missing = [path.name for path in artifacts if not path.is_file()]
    if missing:
        raise CommandError(f"{folder} lacks {', '.join(missing)}", ExitCode.USAGE)
    return ImportFolder(msgspec.json.encode(msgspec.structs.replace(spec, **changes)), artifacts)


def upload_description(model: str, options: dict[str, Any]) -> str:
    """The `description` part of an uploaded model."""
    return json.dumps({"model": model, **options})


def _from_report(data: bytes, *, model: str | None) -> ImportSpec:
    if model is None:
        raise CommandError("report.json does not name the model: say --model NAME", ExitCode.USAGE)
    try:
        report = msgspec.json.decode(data, type=QuantizeReport)
    except msgspec.DecodeError as exc:
        raise InvalidInputError(f"report.json is not a report of covey-quantize: {exc}") from exc
    accepted = [variant for variant in report.variants if variant.accepted]
    if not accepted:
        raise CommandError("no variant in report.json was accepted", ExitCode.REFUSED)
    variants = [_variant(variant, report.held_out_samples) for variant in accepted]
    return ImportSpec(model=model, variants=variants, golden=report.golden, labels=report.labels)


def _variant(variant: VariantReport, samples: int) -> ImportedVariant:
    numbers = (variant.accuracy, variant.accuracy_drop, variant.relative_error, variant.latency_ms)
    if any(number is None for number in numbers):
        raise InvalidInputError(f"report.json has no measurement of {variant.name}")
    accuracy, drop, error, latency = (number or 0.0 for number in numbers)
    return ImportedVariant(
        name=variant.name,
        precision=variant.precision,
        runtime=variant.runtime,
        min_runtime_version=variant.min_runtime_version,
        file=variant.file,
        input=variant.input,
        output=variant.output,
        golden_tolerance=variant.golden_tolerance,
        memory=variant.memory,
        quality=Quality(accuracy=accuracy, accuracy_drop=drop, relative_error=error, latency_ms=latency, samples=samples),
    )
