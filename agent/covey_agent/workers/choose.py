"""Which variant of a release this device runs, and why. Pure.

A variant fits if its runtime is installed in a sufficient version, and architecture, CPU flags and memory suffice. Of those that
fit, the preference is: int8 before float16 before float32 (size and memory), then less accuracy lost (in steps of half a point;
less is measurement noise), then latency as measured on the server, then length.
"""

import re
from dataclasses import dataclass

from covey_agent.workers.errors import RefusedError
from covey_contract.limits import MAX_REASON_CHARS
from covey_contract.messages import Capabilities
from covey_contract.release import Needs, Release, Variant

_PRECISIONS = ("int8", "float16", "float32")
_ACCURACY_STEP = 0.005


@dataclass(frozen=True, slots=True)
class Choice:
    """The variant, and the reason in words for an operator."""

    variant: Variant
    reason: str


def choose_variant(release: Release, capabilities: Capabilities) -> Choice:
    """The best variant for this device. Raises RefusedError if none fits."""
    obstacles = {variant.name: find_obstacle(variant.needs, capabilities) for variant in release.variants}
    fitting = sorted((variant for variant in release.variants if not obstacles[variant.name]), key=_preference)
    unfit = "; ".join(f"{name} needs {obstacle}" for name, obstacle in obstacles.items() if obstacle)
    if not fitting:
        raise RefusedError(_shorten(f"no variant fits because {unfit}"))
    reason = f"{fitting[0].name}: {_merit(fitting)}"
    return Choice(fitting[0], _shorten(f"{reason} ({unfit})" if unfit else reason))


def find_obstacle(needs: Needs, capabilities: Capabilities) -> str:
    """What this device lacks for a variant, or an empty string."""
    runtime = needs.runtime.value
    installed = capabilities.runtimes.get(runtime)
    if installed is None:
        return f"{runtime} >= {needs.min_runtime_version}, not installed"
    if _version(installed) < _version(needs.min_runtime_version):
        return f"{runtime} >= {needs.min_runtime_version}, {installed} is installed"
    if needs.arch and capabilities.arch not in needs.arch:
        return f"{' or '.join(needs.arch)}, this is {capabilities.arch or 'unknown'}"
    lacking = sorted(set(needs.cpu_flags) - set(capabilities.cpu_flags))
    if lacking:
        return f"CPU {' '.join(lacking)}, not here"
    if needs.memory > capabilities.memory:
        return f"{_mebibytes(needs.memory)} of memory, this has {_mebibytes(capabilities.memory)}"
    return ""


def _preference(variant: Variant) -> tuple[int, int, float, int, str]:
    rank = _PRECISIONS.index(variant.precision) if variant.precision in _PRECISIONS else len(_PRECISIONS)
    quality = variant.quality
    # Without a measurement nothing speaks for a variant, so measured ones of its precision come first.
    loss = round(quality.accuracy_drop / _ACCURACY_STEP) if quality else 1_000_000
    return rank, loss, quality.latency_ms if quality else 0.0, variant.length, variant.name


def _merit(fitting: list[Variant]) -> str:
    best = fitting[0]
    if len(fitting) == 1:
        return "the only one that fits"
    if best.length == min(variant.length for variant in fitting):
        return f"smallest of {len(fitting)} that fit"
    rivals = [variant for variant in fitting if variant.precision == best.precision]
    if len(rivals) == 1:
        return f"the only {best.precision} of {len(fitting)} that fit"
    merits = {1: "most accurate", 2: "fastest measured", 3: "smallest"}
    ours, theirs = _preference(rivals[0]), _preference(rivals[1])
    decided = next((index for index in merits if ours[index] != theirs[index]), None)
    merit = merits[decided] if decided else "first by name"
    return f"{merit} {best.precision} of {len(rivals)}, {len(fitting)} fit"


def _version(text: str) -> tuple[int, ...]:
    """The leading numbers of a version, without trailing zeros: 2.1 == 2.1.0, 1.23.2+cu12 == 1.23.2."""
    match = re.match(r"\d+(\.\d+)*", text)
    numbers = [int(part) for part in match.group().split(".")] if match else []
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)


def _mebibytes(size: int) -> str:
    return f"{size / 1024**2:.0f} MiB"


def _shorten(reason: str) -> str:
    return reason if len(reason) <= MAX_REASON_CHARS else reason[: MAX_REASON_CHARS - 3] + "..."
