"""Which prompts succeed on which models: source x target, attack by attack. Imports no torch."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from benchmarks.boards.rows import Entry, Row, read_rows_and_entries
from benchmarks.boards.tables import attack_labels, table, text


class Share(NamedTuple):
    """A rate with its 95 % interval, over `n` behaviours."""

    rate: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Matrix:
    """One attack under one judge."""

    attack: str
    """With the parameters that tell it from others of that name."""
    judge: str
    sources: Sequence[str]
    targets: Sequence[str]
    cells: Mapping[tuple[str, str], Share]
    """(source, target) -> success; on the diagonal where the prompts were found."""
    carried: Mapping[tuple[str, str], float]
    """The same of the prompts that succeeded on their source, none of which may have."""


def matrices(folders: Sequence[Path]) -> list[Matrix]:
    """Of every attack whose prompts were sent to another model.

    Raises:
        BadInput: a folder without records.
    """
    return matrices_of(read_rows_and_entries(folders))


def matrices_of(found: Sequence[tuple[Row, list[Entry]]]) -> list[Matrix]:
    """The same, from rows and the records behind them."""
    labels = attack_labels([row for row, _ in found])
    groups: dict[tuple[str, str, str], list[tuple[Row, list[Entry]]]] = defaultdict(list)
    for row, entries in found:
        groups[labels[row.attack_hash], row.judge, row.stop].append((row, entries))
    made = [_matrix(*names[:2], group) for names, group in sorted(groups.items())]
    return [matrix for matrix in made if matrix]


def _matrix(attack: str, judge: str, group: Sequence[tuple[Row, list[Entry]]]) -> Matrix | None:
    sent = [(row, entries) for row, entries in group if row.origin_model]
    if not sent:
        return None
    origins = {row.origin_model for row, _ in sent}
    own = [(row, entries) for row, entries in group if not (row.origin_model or row.defense)]
    own = [(row, entries) for row, entries in own if row.model in origins]
    succeeded = {entry.record.key: entry.success for _, entries in own for entry in entries}
    cells, carried = {}, {}
    for row, entries in (*own, *sent):
        place = (row.origin_model or row.model, row.model)
        if row.asr is not None and row.asr_low is not None and row.asr_high is not None:
            cells[place] = Share(row.asr, row.asr_low, row.asr_high, row.n)
        kept = [
            entry.success
            for entry in entries
            if entry.record.harmful and succeeded.get(entry.record.origin)
        ]
        known = [success for success in kept if success is not None]
        if known:
            carried[place] = fmean(known)
    targets = dict.fromkeys([*sorted(origins), *sorted({row.model for row, _ in sent})])
    return Matrix(attack, judge, sorted(origins), list(targets), cells, carried)


def as_markdown(found: Sequence[Matrix]) -> str:
    """A table for each attack, and how to read them."""
    if not found:
        return "No transferred prompts.\n"
    blocks = []
    for matrix in found:
        rows = [
            [text(source), *(_cell(matrix, source, target) for target in matrix.targets)]
            for source in matrix.sources
        ]
        title = f"### {text(matrix.attack)}" + (
            f", judged by {text(matrix.judge)}" if matrix.judge else ""
        )
        heads = ["Found on", *map(text, matrix.targets)]
        blocks.append(f"{title}\n\n{table(heads, rows, left=1)}")
    note = (
        "Attack success rate with its 95 % interval of prompts found on the model of the row and "
        "sent to that of the column; in parentheses the same among those that had succeeded on "
        "their own model. The diagonal is the model that they were found on."
    )
    return "\n\n".join([*blocks, note]) + "\n"


def _cell(matrix: Matrix, source: str, target: str) -> str:
    share = matrix.cells.get((source, target))
    if share is None:
        return ""
    carried = matrix.carried.get((source, target))
    kept = "" if carried is None else f" ({carried:.2f})"
    return f"{share.rate:.2f} [{share.low:.2f}, {share.high:.2f}]{kept}"


def as_json(found: Sequence[Matrix]) -> str:
    """A list of objects, one for each attack, source and target, with a final newline."""
    rows = [
        {
            "attack": matrix.attack,
            "judge": matrix.judge,
            "source": source,
            "target": target,
            "asr": share.rate,
            "asr_low": share.low,
            "asr_high": share.high,
            "n": share.n,
            "of_successful": matrix.carried.get((source, target)),
        }
        for matrix in found
        for (source, target), share in sorted(matrix.cells.items())
    ]
    return json.dumps(rows, indent=2) + "\n"
