"""Paired comparisons of records written here."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from attacks.core.errors import BadInput
from benchmarks.boards.compare import Comparison, as_json, as_markdown, compare
from benchmarks.boards.success import median_first_success, wilson
from benchmarks.cli import main
from benchmarks.storage.records import FirstSuccess, Judgement, Record
from benchmarks.storage.store import Store

LABELS = {True: "knows", False: "refused"}


def write(folder: Path, attack: str, outcomes: Sequence[bool], costs: Sequence[int]) -> Path:
    """Records of `attack`: whether each behaviour succeeded, its FLOPs until then (0: never)."""
    with Store(folder) as store:
        for at, (success, cost) in enumerate(zip(outcomes, costs, strict=True)):
            record = Record(
                f"{attack}-{at}",
                "m",
                attack,
                {},
                f"hash of {attack}",
                "prompt",
                f"b{at}",
                0,
                "ok",
                completions=("text",),
                first_success=FirstSuccess(1, cost / 10, cost) if cost else None,
            )
            verdict = Judgement(record.key, "reference", 0, success, LABELS[success])
            store.add(record, [verdict])
    return folder


def one(folder: Path, base: str = "gcg") -> Comparison:
    (row,) = compare([folder], base)
    return row


def test_the_interval_is_that_of_paired_differences(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    ours, theirs = rng.random(80) < 0.8, rng.random(80) < 0.5
    write(tmp_path, "gcg", [bool(x) for x in theirs], [0] * 80)
    row = one(write(tmp_path, "ssr", [bool(x) for x in ours], [0] * 80))
    gap = ours.astype(float) - theirs.astype(float)
    assert (row.n, row.asr, row.base_asr) == (80, ours.mean(), theirs.mean())
    assert row.difference == pytest.approx(gap.mean())
    assert (row.won, row.lost) == (int((gap > 0).sum()), int((gap < 0).sum()))
    # Large-sample theory: 1.96 standard errors of the mean of the paired differences.
    error = 1.96 * gap.std() / math.sqrt(80)
    assert row.difference_low == pytest.approx(gap.mean() - error, abs=0.02)
    assert row.difference_high == pytest.approx(gap.mean() + error, abs=0.02)
    assert row.flops_ratio is None and row.flops_ratio_low is None


def test_no_difference_is_not_certainty(tmp_path: Path) -> None:
    write(tmp_path, "gcg", [True, False] * 20, [0] * 40)
    row = one(write(tmp_path, "ssr", [True, False] * 20, [0] * 40))
    assert row.difference == 0
    assert (row.difference_low, row.difference_high) == (-wilson(0, 40)[1], wilson(0, 40)[1])


def test_costs_are_those_of_the_survival_curve(tmp_path: Path) -> None:
    ours, theirs = [10, 20, 30, 0, 40, 0], [100, 0, 300, 200, 0, 400]
    write(tmp_path, "gcg", [True] * 6, theirs)
    row = one(write(tmp_path, "ssr", [True] * 6, ours))
    medians = [
        median_first_success([c for c in costs if c], [math.inf] * costs.count(0))
        for costs in (ours, theirs)
    ]
    assert medians == [30, 300]
    assert row.flops_ratio == pytest.approx(0.1) and row.seconds_ratio == pytest.approx(0.1)
    assert row.flops_ratio_low is not None and row.flops_ratio_low < 0.1


def test_a_cost_that_only_one_side_reaches(tmp_path: Path) -> None:
    write(tmp_path, "gcg", [True] * 4, [100, 100, 0, 0])
    write(tmp_path, "ssr", [False] * 4, [0] * 4)
    row = one(tmp_path)
    assert (row.reached, row.base_reached, row.flops_ratio) == (False, True, None)
    assert "| never |" in as_markdown([row])
    assert json.loads(as_json([row]))[0]["flops_ratio"] is None
    assert "| base never |" in as_markdown([one(tmp_path, "ssr")])


def test_only_behaviours_in_common_count(tmp_path: Path) -> None:
    write(tmp_path, "gcg", [False] * 5, [0] * 5)
    assert one(write(tmp_path, "ssr", [True] * 3, [1] * 3)).n == 3


def test_an_unknown_base_names_the_valid_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, "gcg", [True], [1])
    write(tmp_path, "ssr|x", [True], [1])
    with pytest.raises(BadInput, match=r"no attack 'other' in the results; valid: gcg, ssr\|x"):
        compare([tmp_path], "other")
    assert main(["compare", str(tmp_path), "--base", "other"]) == 2
    assert main(["compare", str(tmp_path), "--base", "gcg"]) == 0
    assert "ssr\\|x" in capsys.readouterr().out
    assert main(["compare", str(tmp_path), "--base", "gcg", "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["won"] == 0
