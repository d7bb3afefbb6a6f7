"""Paired comparison of attacks: who gets more through, and at what cost, on the same behaviours.

Imports no torch.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attacks.core.errors import BadInput
from benchmarks.boards.rows import Entry, read_rows_and_entries
from benchmarks.boards.stats import holm, sign_test
from benchmarks.boards.success import BOOTSTRAP_SEED, CONFIDENCE, RESAMPLES, wilson
from benchmarks.boards.tables import attack_labels, table, text

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Comparison:
    """One attack against the base on one model, paired over the behaviours that both were run on.

    Differences and ratios are attack against base; intervals are 95 % percentile bootstraps over
    behaviours, whose outcomes under both attacks are drawn together.
    """

    model: str
    attack: str
    params: Mapping[str, Any]
    base: str
    judge: str
    n: int
    """Behaviours in common."""
    asr: float
    base_asr: float
    difference: float
    """In success@1."""
    difference_low: float
    difference_high: float
    won: int
    """Behaviours on which the attack does better than the base."""
    lost: int
    p: float
    """Of the exact paired test that neither attack does better (`stats.sign_test`)."""
    p_holm: float
    """The same, adjusted for all comparisons that are listed together (`stats.holm`)."""
    reached: bool
    """Whether half of the behaviours had a verified success under the attack at all."""
    base_reached: bool
    flops_ratio: float | None
    """Of the medians of FLOPs until the first verified success; None unless both were reached."""
    flops_ratio_low: float | None
    flops_ratio_high: float | None
    seconds_ratio: float | None
    """The same of seconds: search and verification."""


@dataclass(frozen=True)
class _Outcomes:
    """An attack on one model, by behaviour: means over seeds."""

    success: Mapping[str, float]
    flops: Mapping[str, float]
    """Infinite where there was no success."""
    seconds: Mapping[str, float]


def compare(folders: Sequence[Path], base: str) -> list[Comparison]:
    """Every other attack of the same threat model against `base`, model by model, undefended.

    Args:
        folders: of results.
        base: an attack as boards call it: its name, and where one technique has several rows the
            parameters in parentheses that tell it apart.

    Raises:
        BadInput: a folder without records, or no row of that name.
    """
    every = read_rows_and_entries(folders)
    found = [pair for pair in every if not (pair[0].origin_model or pair[0].defense)]
    labels = attack_labels([row for row, _ in found])
    bases = {
        (row.model, row.judge): (row, entries)
        for row, entries in found
        if labels[row.attack_hash] == base
    }
    if not bases:
        valid = ", ".join(sorted(set(labels.values())))
        raise BadInput(f"no attack '{base}' in the results; valid: {valid}")
    comparisons = []
    for row, entries in found:
        against = bases.get((row.model, row.judge))
        if against is None or labels[row.attack_hash] == base:
            continue
        if row.threat_model != against[0].threat_model:
            continue
        sides = (_outcomes(entries), _outcomes(against[1]))
        if common := sorted(sides[0].success.keys() & sides[1].success.keys()):
            names = (labels[row.attack_hash], base)
            comparisons.append(_compared(row.model, row.judge, names, row.params, sides, common))
    adjusted = holm([row.p for row in comparisons])
    return [replace(row, p_holm=p) for row, p in zip(comparisons, adjusted, strict=True)]


def _outcomes(entries: Sequence[Entry]) -> _Outcomes:
    success: dict[str, list[float]] = defaultdict(list)
    costs: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for entry in entries:
        if not entry.record.harmful or entry.success is None:
            continue
        first, behavior = entry.record.first_success, entry.record.behavior_id
        success[behavior].append(float(entry.success))
        costs[behavior].append((first.flops, first.seconds) if first else (math.inf, math.inf))
    return _Outcomes(
        {key: fmean(values) for key, values in success.items()},
        *({key: fmean(cost[at] for cost in rows) for key, rows in costs.items()} for at in (0, 1)),
    )


def _compared(
    model: str,
    judge: str,
    names: tuple[str, str],
    params: Mapping[str, Any],
    sides: tuple[_Outcomes, _Outcomes],
    common: Sequence[str],
) -> Comparison:
    success, base = (np.array([side.success[key] for key in common]) for side in sides)
    gap = success - base
    won, lost = int((gap > 0).sum()), int((gap < 0).sum())
    p = sign_test(won, lost)
    drawn = np.random.default_rng(BOOTSTRAP_SEED).integers(
        len(common), size=(RESAMPLES, len(common))
    )
    low, high = _interval(gap[drawn].mean(1))
    if not gap.any():
        # Resampling no difference at all would claim certainty.
        high = wilson(0, len(common))[1]
        low = -high
    flops, seconds = (
        [np.array([getattr(side, kind)[key] for key in common]) for side in sides]
        for kind in ("flops", "seconds")
    )
    spent, timed = ([float(_medians(side[None])[0]) for side in pair] for pair in (flops, seconds))
    ratio_low, ratio_high = None, None
    if all(map(math.isfinite, spent)) and spent[1] > 0:
        with np.errstate(invalid="ignore"):  # Where neither side succeeds there is no ratio.
            ratios = _medians(flops[0][drawn]) / _medians(flops[1][drawn])
        ratio_low, ratio_high = _interval(ratios[~np.isnan(ratios)])
    return Comparison(
        model=model,
        attack=names[0],
        params=params,
        base=names[1],
        judge=judge,
        n=len(common),
        asr=float(success.mean()),
        base_asr=float(base.mean()),
        difference=float(gap.mean()),
        difference_low=low,
        difference_high=high,
        won=won,
        lost=lost,
        p=p,
        p_holm=p,
        reached=math.isfinite(spent[0]),
        base_reached=math.isfinite(spent[1]),
        flops_ratio=_ratio(*spent),
        flops_ratio_low=ratio_low,
        flops_ratio_high=ratio_high,
        seconds_ratio=_ratio(*timed),
    )


def _medians(costs: Floats) -> Floats:
    """(R,) the cost at which half of each row's (R, N) behaviours have had their first success."""
    half: Floats = np.sort(costs, axis=1)[:, math.ceil(costs.shape[1] / 2) - 1]
    return half


def _ratio(one: float, other: float) -> float | None:
    return one / other if math.isfinite(one) and math.isfinite(other) and other > 0 else None


def _interval(values: Floats) -> tuple[float, float]:
    # Order statistics, and not between them: some may be infinite.
    low, high = np.quantile(
        values, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], method="inverted_cdf"
    )
    return float(low), float(high)


def as_json(rows: Sequence[Comparison]) -> str:
    """A list of objects, with a final newline; infinite ratios are null."""
    values = [{key: None if v == math.inf else v for key, v in asdict(row).items()} for row in rows]
    return json.dumps(values, indent=2, allow_nan=False) + "\n"


def as_markdown(rows: Sequence[Comparison]) -> str:
    """A table and what it means, with a final newline."""
    if not rows:
        return "Nothing to compare.\n"
    headings = ("Model", "Attack", "n", "Success", "Base", "Difference", "Won : lost", "p (Holm)")
    costs = ("FLOPs to first success, ratio", "Seconds, ratio")
    cells = [
        (
            text(row.model),
            text(row.attack),
            str(row.n),
            f"{row.asr:.2f}",
            f"{row.base_asr:.2f}",
            f"{row.difference:+.2f} [{row.difference_low:+.2f}, {row.difference_high:+.2f}]",
            f"{row.won} : {row.lost}",
            f"{row.p_holm:.2g}",
            _span(row, row.flops_ratio, row.flops_ratio_low, row.flops_ratio_high),
            _span(row, row.seconds_ratio, None, None),
        )
        for row in rows
    ]
    return (
        f"Against {text(rows[0].base)}, paired over behaviours.\n\n"
        f"{table((*headings, *costs), cells, left=2)}\n\n"
        "Difference: success@1 of the attack minus that of the base, with the 95 % paired "
        "bootstrap interval. p (Holm): from an exact paired test (McNemar's, on behaviours won "
        f"and lost), adjusted for the {len(rows)} comparisons in this table. Ratio: cost at "
        "which half of the behaviours had their first verified success, attack divided by "
        "base; below 1 the attack is cheaper. Never, or base never: only the other one reached "
        "half; a dash: neither did.\n"
    )


def _span(row: Comparison, value: float | None, low: float | None, high: float | None) -> str:
    if value is None:
        return {(True, False): "base never", (False, True): "never"}.get(
            (row.reached, row.base_reached), ""
        )
    text = f"{value:.2f}"
    return text if low is None or high is None else f"{text} [{low:.2f}, {high:.2f}]"
