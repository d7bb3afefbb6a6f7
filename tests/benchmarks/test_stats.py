"""Tests, corrections, power and ranks against brute force and scipy."""

from __future__ import annotations

import math
from itertools import combinations, product

import numpy as np
import pytest
from scipy.stats import binomtest

from benchmarks.boards.stats import POWER, detectable, holm, power, ranks, sign_test


def test_the_sign_test_is_the_exact_binomial_test() -> None:
    for won, lost in product(range(16), repeat=2):
        expected = binomtest(won, won + lost).pvalue if won + lost else 1.0
        assert sign_test(won, lost) == pytest.approx(expected, rel=1e-12)


def test_holm_is_closed_testing_with_bonferroni() -> None:
    """A hypothesis falls when every set of hypotheses with it falls (Marcus et al. 1976)."""
    rng = np.random.default_rng(0)
    for count in range(1, 7):
        values = [*(rng.random(count) ** 4).tolist()[1:], 0.03]
        expected = []
        for at in range(count):
            others = [each for each in range(count) if each != at]
            sets = (s for size in range(count) for s in combinations(others, size))
            expected.append(
                max(min(1, (len(s) + 1) * min(values[each] for each in (*s, at))) for s in sets)
            )
        assert holm(values) == pytest.approx(expected)
    assert holm([0.5, 0.5]) == [1.0, 1.0] and holm([]) == []


def brute_power(n: int, better: float, worse: float, level: float) -> float:
    """Sum over all splits of n pairs into won, lost and equal ones."""
    total = 0.0
    for won in range(n + 1):
        for lost in range(n + 1 - won):
            if binomtest(won, won + lost).pvalue <= level if won + lost else False:
                ways = math.comb(n, won) * math.comb(n - won, lost)
                total += ways * better**won * worse**lost * (1 - better - worse) ** (n - won - lost)
    return total


@pytest.mark.parametrize(
    ("n", "better", "worse", "level"),
    [(6, 0.9, 0.1, 0.05), (12, 0.5, 0.0, 0.05), (15, 0.6, 0.2, 0.01), (5, 1.0, 0.0, 0.05)],
)
def test_power_is_the_sum_over_all_outcomes(
    n: int, better: float, worse: float, level: float
) -> None:
    assert power(n, better, worse, level=level) == pytest.approx(
        brute_power(n, better, worse, level), abs=1e-12
    )


@pytest.mark.parametrize(("n", "comparisons"), [(10, 1), (16, 1), (16, 3)])
def test_a_detectable_difference_is_found_and_a_smaller_one_is_not(
    n: int, comparisons: int
) -> None:
    found, level = detectable(n, comparisons=comparisons), 0.05 / comparisons
    nested, independent = found
    assert nested is not None and independent is not None
    for less, at_most in ((0.0, POWER + 1e-3), (1e-3, POWER)):
        gap = nested - less
        assert POWER - 0.01 < brute_power(n, gap, 0.0, level) < at_most
        gap = independent - less
        pairs = ((1 + gap) / 2) ** 2, ((1 - gap) / 2) ** 2
        assert POWER - 0.01 < brute_power(n, *pairs, level) < at_most
    assert brute_power(n, nested, 0.0, level) >= POWER


def test_too_few_behaviours_detect_nothing() -> None:
    """Five pairs that all go one way have P = 2 / 32."""
    assert detectable(5) == (None, None)
    assert detectable(6).nested is not None
    assert detectable(6, comparisons=2) == (None, None)


def test_ranks_are_those_of_all_resamples() -> None:
    """Of four behaviours all 256 resamples are counted."""
    success = np.array([[1, 1, 0], [1, 0, 0], [1, 1, 0], [0, 1, 1]], dtype=float)
    outcomes = [{f"b{at}": float(x) for at, x in enumerate(column)} for column in success.T]
    outcomes[1]["elsewhere"] = 0.0
    sums = [success[list(drawn)].sum(0) for drawn in product(range(4), repeat=4)]
    drawn = np.array([[1 + sum(one < other for other in row) for one in row] for row in sums])
    found = ranks(outcomes)
    assert found is not None
    assert [each.rank for each in found] == [1, 1, 3]
    for at, each in enumerate(found):
        kinds, counts = np.unique(drawn[:, at], return_counts=True)
        below = counts.cumsum() / len(drawn)
        # None of these shares is so near to a tail that drawing at random matters.
        assert np.abs(below[:-1, None] - [0.025, 0.975]).min() > 0.01
        assert each.low == kinds[np.searchsorted(below, 0.025)]
        assert each.high == kinds[np.searchsorted(below, 0.975)]
    assert len({(each.low, each.high) for each in found}) > 1


def test_nothing_in_common_has_no_ranks() -> None:
    assert ranks([{"a": 1.0}]) is None and ranks([{"a": 1.0}, {"b": 1.0}]) is None
