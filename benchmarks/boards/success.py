"""Success rates with intervals, and the median time to a first success.

Without scipy.stats, whose import would take most of the time of a leaderboard; tests compare with
it.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

CONFIDENCE = 0.95

#: Resamples of the bootstrap, and the seed that makes an interval the same on every machine.
RESAMPLES, BOOTSTRAP_SEED = 9999, 0
_BATCH = 1000


@dataclass(frozen=True)
class Rate:
    """A share of behaviours, with its 95 % interval."""

    mean: float
    low: float
    high: float
    n: int
    """Behaviours."""


def success_rate(outcomes: Collection[Sequence[bool]]) -> Rate | None:
    """The mean over behaviours of each one's share of successes over its seeds.

    One outcome for each behaviour: Wilson's interval. Several: a bootstrap over behaviours, whose
    seeds are not independent of each other. Behaviours without outcomes leave n; None if all do.
    """
    behaviors = [outcome for outcome in outcomes if outcome]
    if not behaviors:
        return None
    means = [sum(outcome) / len(outcome) for outcome in behaviors]
    # Where all behaviours agree, resampling shows no spread and would claim certainty.
    if max(map(len, behaviors)) > 1 and min(means) < max(means):
        low, high = cluster_bootstrap(means)
    else:
        low, high = wilson(round(sum(means)), len(means))
    return Rate(float(np.mean(means)), low, high, len(means))


def wilson(successes: int, n: int) -> tuple[float, float]:
    """Wilson's score interval for a proportion (Wilson 1927), without continuity correction."""
    z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    centre = (successes + z * z / 2) / (n + z * z)
    half = z / (n + z * z) * math.sqrt(successes * (n - successes) / n + z * z / 4)
    # At the ends it is 0 or 1 but for rounding.
    low, high = 0.0 if successes == 0 else centre - half, 1.0 if successes == n else centre + half
    return low, high


def cluster_bootstrap(means: Sequence[float]) -> tuple[float, float]:
    """Percentile bootstrap of the mean of at least two behaviours' means."""
    values, rng = np.asarray(means), np.random.default_rng(BOOTSTRAP_SEED)
    sizes = [min(_BATCH, RESAMPLES - done) for done in range(0, RESAMPLES, _BATCH)]
    drawn = (values[rng.integers(len(values), size=(size, len(values)))] for size in sizes)
    resampled = np.concatenate([some.mean(axis=1) for some in drawn])
    low, high = np.quantile(resampled, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def median_first_success(successes: Sequence[float], failures: Sequence[float]) -> float | None:
    """The cost (seconds, FLOPs) at which half of all behaviours have had their first success.

    `successes` holds each success's cost, `failures` what was spent without success, where the
    survival curve (Kaplan and Meier 1958) is censored; infinite for what could never succeed. None
    when the curve never comes down to one half.
    """
    costs = np.array([*successes, *failures], dtype=float)
    left = 1.0
    for cost in sorted(set(successes)):
        left *= 1 - successes.count(cost) / int((costs >= cost).sum())
        # The curve is a product of fractions, which may miss one half by a rounding error.
        if left <= 0.5 + 1e-9:
            return float(cost)
    return None
