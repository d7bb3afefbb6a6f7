"""`python -m benchmarks.studies.chosen FOLDER`: how the numbers of `strong` were chosen.

FOLDER holds the records of `reroute run pocket-strong-choice`. Imports no torch.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, geometric_mean
from typing import Any

import numpy as np

from attacks.core.errors import BadInput
from benchmarks.boards.rows import read_rows_and_entries
from benchmarks.boards.success import BOOTSTRAP_SEED, CONFIDENCE
from benchmarks.boards.tables import attack_labels, table
from benchmarks.storage.records import Record
from benchmarks.storage.store import RECORDS

#: Share of behaviours by which a configuration may be below the best and still be chosen.
_SLACK = 0.02
_RESAMPLES = 2000


@dataclass(frozen=True)
class Tried:
    """One configuration on all models."""

    label: str
    success: float
    """Mean over models."""
    worst: float
    """On the model where it is lowest."""
    cost: float
    """FLOPs for each success: all spent by all that succeeded, geometric mean of models."""
    steps: float
    """Mean number of steps."""


#: By model and behaviour: FLOPs spent, and whether there was a success.
Outcomes = Mapping[tuple[str, str], tuple[float, bool]]


def tried(label: str, records: Sequence[Record]) -> Tried:
    """The figures of one configuration's records."""
    outcomes = outcomes_of(records)
    success, worst, cost = figures(outcomes)
    return Tried(label, success, worst, cost, fmean(record.steps for record in records))


def outcomes_of(records: Sequence[Record]) -> dict[tuple[str, str], tuple[float, bool]]:
    """What each search came to."""
    return {
        (record.model, record.behavior_id): (
            float(record.first_success.flops if record.first_success else record.flops),
            record.first_success is not None,
        )
        for record in records
    }


def figures(outcomes: Outcomes) -> tuple[float, float, float]:
    """Success over all models and on the worst one, and the cost of a success."""
    models: dict[str, list[tuple[float, bool]]] = defaultdict(list)
    for (model, _), outcome in outcomes.items():
        models[model].append(outcome)
    rates = [fmean(done for _, done in rows) for rows in models.values()]
    costs = [
        sum(spent for spent, _ in rows) / sum(d for _, d in rows)
        for rows in models.values()
        if any(done for _, done in rows)
    ]
    cost = geometric_mean(costs) if len(costs) == len(models) else float("inf")
    return fmean(rates), min(rates), cost


def alternating(one: Outcomes, other: Outcomes) -> dict[tuple[str, str], tuple[float, bool]]:
    """Summary of two configurations that take turns at equal operations until one succeeds.

    It is the best that halving or a bandit over the two could know before either has succeeded.
    """
    found = {}
    for key in one.keys() & other.keys():
        won = [spent for spent, done in (one[key], other[key]) if done]
        found[key] = (2 * min(won), True) if won else (one[key][0] + other[key][0], False)
    return found


def span(one: Outcomes, other: Outcomes) -> tuple[float, float]:
    """95 % bootstrap interval of the ratio of the costs of a success, paired over behaviours."""
    rng = np.random.default_rng(BOOTSTRAP_SEED)
    models = sorted({model for model, _ in one})
    ratios = np.zeros(_RESAMPLES)
    for model in models:
        keys = sorted(key for key in one.keys() & other.keys() if key[0] == model)
        drawn = rng.integers(len(keys), size=(_RESAMPLES, len(keys)))
        sides = []
        for side in (one, other):
            spent, done = (np.array([side[key][at] for key in keys], float) for at in (0, 1))
            # A draw without any success counts as one with half a success.
            sides.append(spent[drawn].sum(1) / np.maximum(done[drawn].sum(1), 0.5))
        ratios += np.log(sides[0] / sides[1]) / len(models)
    low, high = np.quantile(ratios, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(np.exp(low)), float(np.exp(high))


def main(argv: list[str] | None = None) -> int:
    """Exit status: 0, or 2 with one line on what is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.studies.chosen", description=__doc__
    )
    add: Any = parser.add_argument
    add("folder", type=Path)
    try:
        print(report(parser.parse_args(argv).folder))
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def report(folder: Path) -> str:
    """The table, what is chosen, and whether two that alternate would be better.

    Raises:
        BadInput: a folder without records.
    """
    found = read_rows_and_entries([folder])
    labels = attack_labels([row for row, _ in found])
    lines = (folder / RECORDS).read_text("utf-8").splitlines()
    run = dict.fromkeys(json.loads(line)["attack_hash"] for line in lines)
    records: dict[str, list[Record]] = {labels[name]: [] for name in run}
    for row, entries in found:
        records[labels[row.attack_hash]] += [entry.record for entry in entries]
    rows = sorted((tried(*pair) for pair in records.items()), key=lambda row: row.cost)
    most = max(row.success for row in rows)
    outcomes = {label: outcomes_of(kept) for label, kept in records.items()}
    good = [row for row in rows if row.success >= most - _SLACK]
    spans = {row.label: span(outcomes[row.label], outcomes[good[0].label]) for row in rows}
    alike = {row.label for row in good if spans[row.label][0] <= 1}
    best = next(label for label in records if label in alike)
    pairs = {
        pair: figures(alternating(*(outcomes[label] for label in pair)))
        for pair in itertools.combinations(outcomes, 2)
    }
    pair = min(pairs, key=lambda names: pairs[names][2])
    cells = [
        (
            row.label,
            f"{row.success:.3f}",
            f"{row.worst:.2f}",
            f"{row.cost / 1e9:.2f}",
            "{:.2f} [{:.2f}, {:.2f}]".format(row.cost / good[0].cost, *spans[row.label]),
            f"{row.steps:.1f}",
        )
        for row in rows
    ]
    headings = (
        "Configuration",
        "Success",
        "Lowest on a model",
        "GFLOPs a success",
        "Ratio",
        "Steps",
    )
    n = {label: len(kept) for label, kept in records.items()}
    success, worst, cost = pairs[pair]
    return (
        f"{table(headings, cells, left=1)}\n\n"
        f"{min(n.values())} searches for each row. GFLOPs a success: all that was spent by all "
        "that succeeded, geometric mean over models. Ratio: to the cheapest row within "
        f"{_SLACK} of the highest success, with the 95 % paired bootstrap interval over "
        "behaviours.\n\n"
        f"Chosen: {best}. That is the first of the suite among those within "
        f"{_SLACK} of the highest success that are not dearer than the cheapest beyond chance.\n\n"
        f"Of all pairs that take turns until one succeeds the cheapest would be {pair[0]} with "
        f"{pair[1]}: success {success:.3f}, {worst:.2f} on the worst model, {cost / 1e9:.2f} "
        f"GFLOPs a success.\n"
    )


if __name__ == "__main__":
    sys.exit(main())
