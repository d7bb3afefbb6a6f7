"""Rates and intervals against closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from benchmarks.boards.success import cluster_bootstrap, median_first_success, success_rate, wilson

Z = 1.959963984540054


@pytest.mark.parametrize(("k", "n"), [(0, 10), (3, 10), (10, 10), (50, 100), (1, 1)])
def test_wilson_is_the_closed_form(k: int, n: int) -> None:
    p = k / n
    centre = (p + Z * Z / (2 * n)) / (1 + Z * Z / n)
    half = Z / (1 + Z * Z / n) * math.sqrt(p * (1 - p) / n + Z * Z / (4 * n * n))
    assert wilson(k, n) == pytest.approx((max(0, centre - half), min(1, centre + half)), abs=1e-12)


def test_one_seed_gives_wilson() -> None:
    rate = success_rate([[True]] * 8 + [[False]] * 2)
    assert rate is not None
    assert (rate.mean, rate.n) == (0.8, 10)
    assert (rate.low, rate.high) == wilson(8, 10)


def test_seeds_are_clustered_by_behaviour() -> None:
    """Ten copies of each outcome say nothing new: the interval must not shrink with them."""
    few = success_rate([[True] * 2] * 10 + [[False] * 2] * 10)
    many = success_rate([[True] * 20] * 10 + [[False] * 20] * 10)
    assert few is not None and few == many
    # Of the mean of 20 coin flips: standard error 0.5 / sqrt(20).
    assert few.high - few.low == pytest.approx(2 * Z * 0.5 / math.sqrt(20), rel=0.1)


def test_the_mean_weighs_behaviours_and_not_records() -> None:
    rate = success_rate([[True], [False, False, False]])
    assert rate is not None and rate.mean == 0.5 and rate.n == 2


def test_bootstrap_is_seeded_and_near_the_normal_interval() -> None:
    means = np.random.default_rng(1).uniform(size=200).tolist()
    low, high = cluster_bootstrap(means)
    assert (low, high) == cluster_bootstrap(means)
    half = Z * float(np.std(means)) / math.sqrt(200)
    assert low == pytest.approx(np.mean(means) - half, abs=0.01)
    assert high == pytest.approx(np.mean(means) + half, abs=0.01)


def test_agreement_of_all_behaviours_is_not_certainty() -> None:
    rate = success_rate([[True, True]] * 10)
    assert rate is not None and rate.mean == 1.0
    assert (rate.low, rate.high) == wilson(10, 10)


def test_nothing_measured_is_none() -> None:
    assert success_rate([]) is None
    assert success_rate([[], []]) is None


def test_median_without_failures_is_the_middle_success() -> None:
    assert median_first_success([5, 1, 3], []) == 3
    assert median_first_success([1, 2, 3, 4], []) == 2


def test_failures_move_the_median_and_may_hide_it() -> None:
    assert median_first_success([1, 2], [9]) == 2
    assert median_first_success([1, 2], [9, 9]) == 2
    assert median_first_success([1, 2], [9, 9, 9]) is None
    assert median_first_success([], [9]) is None
    assert median_first_success([], []) is None


def test_what_cannot_succeed_stays_at_risk_for_ever() -> None:
    assert median_first_success([1, 2], [math.inf] * 2) == 2
    assert median_first_success([1, 2], [math.inf] * 3) is None
    # Unlike a failure after a short search, of which nobody knows what came later.
    assert median_first_success([1, 2], [0.0] * 3) == 1


def test_median_is_that_of_the_product_limit_curve() -> None:
    """Events 1, 2, 4, censored at 3: survival 3/4, 1/2 and then 0."""
    assert median_first_success([1, 2, 4], [3]) == 2
    # Censored before the second event: 3/4 and then 3/4 * 1/2 = 3/8.
    assert median_first_success([1, 3, 4], [2]) == 3
    # A failure at the time of a success was still at risk: 2/3, then 1/3.
    assert median_first_success([1, 2], [1]) == 2


def test_figures_are_those_of_scipy() -> None:
    rng = np.random.default_rng(2)
    for n in (1, 2, 7, 50):
        for k in range(n + 1):
            known = stats.binomtest(k, n).proportion_ci(0.95, method="wilson")
            assert wilson(k, n) == pytest.approx((known.low, known.high), abs=1e-12)
        means = rng.uniform(size=n + 1)
        drawn = stats.bootstrap(
            (means,),
            np.mean,
            n_resamples=9999,
            batch=1000,
            method="percentile",
            rng=np.random.default_rng(0),
        ).confidence_interval
        assert cluster_bootstrap(means.tolist()) == pytest.approx((drawn.low, drawn.high))
        # Ties between costs, and between successes and failures, are many.
        costs, failed = rng.integers(5, size=n).astype(float), rng.random(n) < 0.4
        curve = stats.ecdf(stats.CensoredData.right_censored(costs, failed)).sf
        below = curve.quantiles[curve.probabilities <= 0.5 + 1e-9]
        found = median_first_success(costs[~failed].tolist(), costs[failed].tolist())
        assert found == (below[0] if len(below) else None)
