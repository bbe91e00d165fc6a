"""From a quantization report to the variants of a release manifest."""

from pathlib import Path

from covey_contract.codec import digest_of
from covey_contract.limits import CHUNK_BYTES
from covey_contract.release import Golden, Needs, Quality, Variant
from covey_quantize.errors import OutputDirectoryError
from covey_quantize.report import QuantizeReport, VariantReport


def to_release_variants(report: QuantizeReport, directory: Path) -> list[Variant]:
    """The accepted variants as a manifest holds them, the smallest file first.

    Args:
        directory: where the pipeline wrote its files.

    Raises:
        OutputDirectoryError: a file is gone or is no longer the one that was measured.
    """
    accepted = sorted(report.accepted(), key=lambda variant: (variant.length, variant.name))
    return [_to_variant(variant, _read(variant, directory), report.held_out_samples) for variant in accepted]


def to_release_golden(report: QuantizeReport) -> Golden:
    """The golden inputs and the float model's outputs."""
    return report.golden


def chunk_digests(data: bytes) -> list[str]:
    """sha256 of each CHUNK_BYTES of an artifact, in order."""
    return [digest_of(data[start : start + CHUNK_BYTES]) for start in range(0, len(data), CHUNK_BYTES)]


def _read(variant: VariantReport, directory: Path) -> bytes:
    try:
        data = (directory / variant.file).read_bytes()
    except OSError as exc:
        raise OutputDirectoryError(f"{directory / variant.file}: cannot be read: {exc}") from exc
    if digest_of(data) != variant.sha256:
        raise OutputDirectoryError(f"{directory / variant.file}: expected sha256 {variant.sha256}, got {digest_of(data)}")
    return data


def _to_variant(variant: VariantReport, data: bytes, samples: int) -> Variant:
    return Variant(
        name=variant.name,
        precision=variant.precision,
        needs=Needs(runtime=variant.runtime, min_runtime_version=variant.min_runtime_version, memory=variant.memory),
        artifact=variant.sha256,
        length=variant.length,
        chunks=chunk_digests(data),
        input=variant.input,
        output=variant.output,
        golden_tolerance=variant.golden_tolerance,
        quality=_quality(variant, samples),
    )


def _quality(variant: VariantReport, samples: int) -> Quality | None:
    if variant.accuracy is None or variant.accuracy_drop is None or variant.relative_error is None:
        return None
    return Quality(
        accuracy=variant.accuracy,
        accuracy_drop=variant.accuracy_drop,
        relative_error=variant.relative_error,
        latency_ms=variant.latency_ms or 0.0,
        samples=samples,
    )
