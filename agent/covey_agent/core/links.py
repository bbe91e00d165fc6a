"""The owner's rules for downloads, from the settings' words."""

from covey_agent.core.jobs import LinkRules, MeteredPolicy
from covey_agent.errors import UsageError


def parse_link_rules(*, max_kbit_per_s: float, metered: str, policy: str, small_mb: float, interfaces: str) -> LinkRules:
    """Raises UsageError for a word that is none of those allowed."""
    if metered not in {"auto", "yes", "no"}:
        raise UsageError(f"network.metered must be auto, yes or no, got {metered!r}")
    if policy not in {known.value for known in MeteredPolicy}:
        raise UsageError(f"network.metered_policy must be allow, small or wait, got {policy!r}")
    return LinkRules(
        max_bytes_per_s=max_kbit_per_s * 1000 / 8,
        metered=metered,
        policy=MeteredPolicy(policy),
        small_bytes=int(small_mb * 1e6),
        interfaces=interfaces.split(),
    )
