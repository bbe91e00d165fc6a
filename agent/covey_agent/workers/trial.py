"""Measures those variants of a release that fit this device and were never timed on it: each once for a model, not for every release.

Latency depends on the shapes and the types of a model, not on its weights, so the next release of the same model needs no trial.
"""

import logging
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec

from covey_agent.core.jobs import Measured, MeasureFailed, MeasureJob
from covey_contract.messages import Capabilities
from covey_contract.release import Variant

logger = logging.getLogger(__name__)
TIMEOUT_S = 60.0
NEVER = 1e9  # ms: it was tried and cannot be run here this way, and is not tried again


def way(variant: Variant, provider: str) -> str:
    """The name of a variant run by a provider, in what is kept."""
    return f"{variant.name}@{provider}"


def providers_of(variant: Variant, capabilities: Capabilities) -> list[str]:
    """The execution providers to choose from; one empty name for the runtime's default."""
    return capabilities.providers.get(variant.needs.runtime.value) or [""]


def unmeasured(variants: Sequence[Variant], capabilities: Capabilities, measured: Mapping[str, float]) -> list[Variant]:
    """Those of which some way was never timed."""
    return [v for v in variants if any(way(v, provider) not in measured for provider in providers_of(v, capabilities))]


def is_worth_it(variants: Sequence[Variant], missing: Sequence[Variant], *, most_bytes: int) -> bool:
    """Whether there is a choice to be made, and what it takes is small."""
    return len(variants) > 1 and bool(missing) and sum(variant.length for variant in missing) <= most_bytes


def try_out(
    variants: Sequence[Variant], capabilities: Capabilities, *, obtain: Callable[[Variant], Path], measured: Mapping[str, float]
) -> dict[str, float]:
    """Fetch and time each; what was known and what is now, ms. Raises what `obtain` raises."""
    known = dict(measured)
    for variant in variants:
        path = obtain(variant)
        for provider in providers_of(variant, capabilities):
            if way(variant, provider) not in known:
                known[way(variant, provider)] = measure_apart(path, variant, provider)
    return known


def measure_apart(path: Path, variant: Variant, provider: str) -> float:
    """In a child; NEVER if it does not survive or cannot run it."""
    job = msgspec.json.encode(MeasureJob(path=str(path), variant=variant, provider=provider)) + b"\n"
    command = [sys.executable, "-m", "covey_agent.workers.measure"]
    try:
        done = subprocess.run(command, input=job, capture_output=True, timeout=TIMEOUT_S, check=False)
        event = msgspec.json.decode(done.stdout.strip().rpartition(b"\n")[2], type=Measured | MeasureFailed)
    except (subprocess.TimeoutExpired, OSError, msgspec.DecodeError) as exc:
        logger.warning("%s cannot be timed by %s: %s", variant.name, provider or "default", exc)
        return NEVER
    if isinstance(event, Measured):
        return event.latency_ms
    logger.warning("%s cannot be run by %s: %s", variant.name, provider or "default", event.reason)
    return NEVER
