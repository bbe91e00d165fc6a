"""Latencies as counts in buckets that grow by a fixed factor, so that windows can be added up and a percentile still be read off.

A mean of percentiles is not a percentile. Bucket b holds latencies in (BASE**(b-1), BASE**b] milliseconds; a percentile read from the
buckets is at most BASE - 1 = 2 % too high and never too low.
"""

import math
from collections.abc import Iterable, Mapping

BASE = 1.02
_LOG_BASE = math.log(BASE)
_LEAST_MS = 0.001


def count_latencies(latencies_ms: Iterable[float]) -> dict[int, int]:
    """bucket -> how many."""
    counts: dict[int, int] = {}
    for latency_ms in latencies_ms:
        bucket = math.ceil(math.log(max(latency_ms, _LEAST_MS)) / _LOG_BASE - 1e-9)
        counts[bucket] = counts.get(bucket, 0) + 1
    return counts


def add_latencies(counts: Mapping[int, int], more: Mapping[int, int]) -> dict[int, int]:
    """Both together."""
    total = dict(counts)
    for bucket, count in more.items():
        total[bucket] = total.get(bucket, 0) + count
    return total


def percentile_ms(counts: Mapping[int, int], share: float) -> float:
    """The nearest-rank percentile, `share` in (0, 1]; 0 if nothing was counted."""
    rank = math.ceil(share * sum(counts.values()))
    seen = 0
    for bucket in sorted(counts):
        seen += counts[bucket]
        if seen >= rank:
            return BASE**bucket
    return 0.0
