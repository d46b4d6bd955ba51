"""Percentiles of measured times."""

from __future__ import annotations

from collections.abc import Sequence


def percentile(sorted_values: Sequence[float], percent: float) -> float:
    """Return the nearest-rank percentile of ascending values; NaN when there are none.

    >>> percentile([1, 2, 3, 4], 50)
    2
    """
    if not sorted_values:
        return float("nan")
    rank = max(0, -(-len(sorted_values) * percent // 100) - 1)
    return sorted_values[int(rank)]
