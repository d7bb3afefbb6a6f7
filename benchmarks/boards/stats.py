"""Comparing attacks: paired tests, many at once, what can be detected, and how firm ranks are.

Rates and their intervals are in `success`. Imports neither torch nor, until it is needed, scipy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.boards.success import BOOTSTRAP_SEED, CONFIDENCE, RESAMPLES

ALPHA = 1 - CONFIDENCE
#: Probability with which a difference is to be found.
POWER = 0.8
_HALVINGS = 20


def sign_test(won: int, lost: int) -> float:
    """Two-sided P value of as uneven a split of the pairs that differ.

    The exact test of McNemar (1947) where outcomes are 0 or 1. Pairs that do not differ say
    nothing; without others it is 1.
    """
    n = won + lost
    tail = sum(math.comb(n, count) for count in range(min(won, lost) + 1))
    return float(min(1.0, 2 * tail / 2**n))


def holm(values: Sequence[float]) -> list[float]:
    """P values adjusted so that the chance of any false finding is kept (Holm 1979)."""
    order = sorted(range(len(values)), key=values.__getitem__)
    adjusted, highest = [0.0] * len(values), 0.0
    for done, at in enumerate(order):
        highest = max(highest, min(1.0, (len(values) - done) * values[at]))
        adjusted[at] = highest
    return adjusted


class Detectable(NamedTuple):
    """The smallest differences between two success rates that are found with `POWER`."""

    nested: float | None
    """Where one attack succeeds wherever the other does; None: not even 1."""
    independent: float | None
    """Where the two succeed independently of each other, on either side of one half."""


def detectable(n: int, *, comparisons: int = 1) -> Detectable:
    """What `sign_test` finds among `n` paired behaviours at the 5 % level.

    Args:
        n: behaviours.
        comparisons: how many are made; the level is that of the first step of Holm's procedure.
    """
    level = ALPHA / comparisons
    return Detectable(
        _smallest(n, level, lambda gap: (gap, 0.0)),
        _smallest(n, level, lambda gap: ((0.5 + gap / 2) ** 2, (0.5 - gap / 2) ** 2)),
    )


def power(n: int, better: float, worse: float, *, level: float = ALPHA) -> float:
    """Probability that `sign_test` is significant.

    Args:
        n: pairs.
        better: probability that a pair goes to the one side.
        worse: that it goes to the other.
        level: of significance.
    """
    from scipy import stats

    counts = np.arange(1, n + 1)
    most = _most(n, level)
    share = better / (better + worse) if better + worse else 0.0
    tails = stats.binom.cdf(most, counts, share) + stats.binom.cdf(most, counts, 1 - share)
    return float(stats.binom.pmf(counts, n, better + worse) @ (tails * (most >= 0)))


@cache
def _most(n: int, level: float) -> NDArray[np.int64]:
    """(n,) of 1, 2, ... n pairs that differ, the most on the smaller side in a significant split.

    -1 where none is significant.
    """
    found, most = np.full(n, -1), -1
    for pairs in range(1, n + 1):
        # One pair more allows for one more at most.
        most += sign_test(most + 1, pairs - most - 1) <= level
        found[pairs - 1] = most
    return found


def _smallest(n: int, level: float, pairs: Callable[[float], tuple[float, float]]) -> float | None:
    """The difference at which the power, which rises with it, is `POWER`."""
    if power(n, *pairs(1.0), level=level) < POWER:
        return None
    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if power(n, *pairs(middle), level=level) < POWER:
            low = middle
        else:
            high = middle
    return high


class Rank(NamedTuple):
    """Where an attack stands among others, 1 the best; attacks that are equal share a rank."""

    rank: int
    low: int
    high: int
    """Ends of the 95 % interval over resampled behaviours."""


def ranks(outcomes: Sequence[Mapping[str, float]]) -> list[Rank] | None:
    """Ranks by mean success, with a bootstrap over the behaviours that all attacks share.

    Args:
        outcomes: of each attack, success by behaviour.

    Returns:
        None where there are fewer than two attacks, or no behaviour in common.
    """
    common = sorted(set.intersection(*map(set, outcomes))) if len(outcomes) > 1 else []
    if not common:
        return None
    success = np.array([[own[key] for own in outcomes] for key in common])
    rng = np.random.default_rng(BOOTSTRAP_SEED)
    n = len(common)
    counts = rng.multinomial(n, np.full(n, 1 / n), size=RESAMPLES)
    drawn = _ranked(counts @ success)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail], axis=0, method="inverted_cdf").astype(int)
    (own,) = _ranked(success.sum(0, keepdims=True))
    return [Rank(*map(int, found)) for found in zip(own, low, high, strict=True)]


def _ranked(sums: NDArray[np.float64]) -> NDArray[np.int64]:
    """(R, A) ranks of the columns of (R, A) sums in each row, the largest first."""
    # Sums of shares that are equal may differ by a rounding error.
    better: NDArray[np.int64] = (sums[:, None, :] > sums[:, :, None] + 1e-9).sum(-1)
    return better + 1
