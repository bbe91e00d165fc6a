"""Which variant of a release this device runs, and why. Pure.

A variant fits if its runtime is installed in a sufficient version, and architecture, CPU flags and memory suffice. Of those that
fit, the one that was measured to be the fastest on this device is taken, by the execution provider that makes it so; what is at most a
tenth slower counts as fast. Among those, and where nothing was measured, the preference is: int8 before float16 before float32 (size
and memory), then less accuracy lost (in steps of half a point; less is measurement noise), then latency as measured on the server,
then length.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from covey_agent.workers.errors import RefusedError
from covey_agent.workers.trial import NEVER, providers_of, way
from covey_contract.limits import MAX_REASON_CHARS
from covey_contract.messages import Capabilities
from covey_contract.release import Needs, Release, Variant

_PRECISIONS = ("int8", "float16", "float32")
_ACCURACY_STEP = 0.005
_AS_FAST = 1.1  # times the fastest


@dataclass(frozen=True, slots=True)
class Choice:
    """The variant, and the reason in words for an operator."""

    variant: Variant
    reason: str
    provider: str = ""  # execution provider; empty: the runtime's default


def fitting_variants(release: Release, capabilities: Capabilities) -> list[Variant]:
    """Those that this device can run, the one that speaks for itself without a measurement first. Raises RefusedError if none is."""
    obstacles = {variant.name: find_obstacle(variant.needs, capabilities) for variant in release.variants}
    fitting = sorted((variant for variant in release.variants if not obstacles[variant.name]), key=_preference)
    if not fitting:
        raise RefusedError(_shorten(f"no variant fits because {_list_unfit(release, capabilities)}"))
    return fitting


def choose_variant(release: Release, capabilities: Capabilities, measured: Mapping[str, float] | None = None) -> Choice:
    """The best variant for this device, by what was `measured` on it (variant@provider -> ms). Raises RefusedError if none fits."""
    fitting = fitting_variants(release, capabilities)
    times = _best_times(fitting, capabilities, measured or {})
    provider = ""
    if len(times) > 1:
        fastest = min(ms for ms, _ in times.values())
        best = next(variant for variant in fitting if variant.name in times and times[variant.name][0] <= fastest * _AS_FAST)
        provider = times[best.name][1]
        reason = _tell_times(best, times)
    else:
        best, reason = fitting[0], f"{fitting[0].name}: {_merit(fitting)}"
        provider = times[best.name][1] if best.name in times else ""
    unfit = _list_unfit(release, capabilities)
    return Choice(best, _shorten(f"{reason} ({unfit})" if unfit else reason), provider)


def _best_times(variants: list[Variant], capabilities: Capabilities, measured: Mapping[str, float]) -> dict[str, tuple[float, str]]:
    """Of each variant that was measured and can be run: ms, and the provider."""
    times = {}
    for variant in variants:
        ways = [
            (measured[name], provider) for provider in providers_of(variant, capabilities) if (name := way(variant, provider)) in measured
        ]
        if ways and min(ways)[0] < NEVER:
            times[variant.name] = min(ways)
    return times


def _tell_times(best: Variant, times: Mapping[str, tuple[float, str]]) -> str:
    ms, provider = times[best.name]
    others = ", ".join(f"{name} {each:.3g} ms" for name, (each, _) in times.items() if name != best.name)
    return f"{best.name}{f' by {provider}' if provider else ''}: {ms:.3g} ms measured here; {others}"


def _list_unfit(release: Release, capabilities: Capabilities) -> str:
    obstacles = {variant.name: find_obstacle(variant.needs, capabilities) for variant in release.variants}
    return "; ".join(f"{name} needs {obstacle}" for name, obstacle in obstacles.items() if obstacle)


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
