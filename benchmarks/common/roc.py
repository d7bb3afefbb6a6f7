"""How well scores tell two groups apart."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence


def area_under_curve(low: Sequence[float], high: Sequence[float]) -> float | None:
    """Area under the ROC curve: P(high > low) + P(equal) / 2 of one drawn from each.

    None where either group is empty.
    """
    if not (low and high):
        return None
    ordered = sorted(low)
    wins = sum(bisect_left(ordered, x) + bisect_right(ordered, x) for x in high)
    return wins / (2 * len(low) * len(high))
