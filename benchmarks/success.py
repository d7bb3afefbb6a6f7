"""Success rates with intervals, and the median time to a first success."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

CONFIDENCE = 0.95

#: Resamples of the bootstrap, and the seed that makes an interval the same on every machine.
RESAMPLES, BOOTSTRAP_SEED = 9999, 0


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
    interval = stats.binomtest(successes, n).proportion_ci(CONFIDENCE, method="wilson")
    return float(interval.low), float(interval.high)


def cluster_bootstrap(means: Sequence[float]) -> tuple[float, float]:
    """Percentile bootstrap of the mean of at least two behaviours' means."""
    result = stats.bootstrap(
        (np.asarray(means),),
        np.mean,
        n_resamples=RESAMPLES,
        batch=1000,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(BOOTSTRAP_SEED),
    )
    interval = result.confidence_interval
    return float(interval.low), float(interval.high)


def median_first_success(successes: Sequence[float], failures: Sequence[float]) -> float | None:
    """The cost (seconds, FLOPs) at which half of all behaviours have had their first success.

    `successes` holds each success's cost, `failures` what was spent in vain, where the survival
    curve (Kaplan and Meier 1958) is censored; infinite for what could never succeed. None when the
    curve never comes down to one half.
    """
    if not successes:
        return None
    # The curve falls at successes only, so nothing after the last one changes it.
    values = np.minimum([*successes, *failures], max(successes), dtype=float)
    censored = np.arange(len(values)) >= len(successes)
    curve = stats.ecdf(stats.CensoredData.right_censored(values, censored)).sf
    # The curve is a product of fractions, which may miss one half by a rounding error.
    reached = curve.quantiles[curve.probabilities <= 0.5 + 1e-9]
    return float(reached[0]) if len(reached) else None
