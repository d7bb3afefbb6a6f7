"""What the page shows: boards, and for each the best attack and what is uncertain about it."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

from attacks.core.errors import BadInput
from benchmarks.boards.columns import defense_labels
from benchmarks.boards.leaderboard import board_of, title_of
from benchmarks.boards.ranking import BASELINE, by_success
from benchmarks.boards.rows import Entry, Row, read_rows_and_entries
from benchmarks.boards.success import Rate, cluster_bootstrap, success_rate
from benchmarks.boards.tables import attack_labels
from benchmarks.inputs.behaviors import load_behaviors, shipped_behaviors
from benchmarks.inputs.suites import Suite, noted_suites
from benchmarks.transfer import Matrix, matrices_of


@dataclass(frozen=True)
class Line:
    """A row of a board with the records behind it."""

    row: Row
    entries: Sequence[Entry]
    label: str
    """The attack's name, with the parameters that tell it from others of that name."""

    @property
    def harmful(self) -> list[Entry]:
        """The entries of harmful behaviours."""
        return [entry for entry in self.entries if entry.record.harmful]


@dataclass(frozen=True)
class Standing:
    """An attack over all models of a board that every searched attack of it was run on."""

    label: str
    rate: Rate
    behind: float
    """How much less it succeeds than the best attack: the mean paired difference."""
    behind_low: float
    behind_high: float
    """95 % bootstrap interval over behaviours."""

    @property
    def apart(self) -> bool:
        """Whether the interval of the difference leaves out zero."""
        return self.behind_low > 0


@dataclass(frozen=True)
class Board:
    """Rows that may be compared: one threat model, stop rule, concurrency and judge."""

    title: str
    judge: str
    lines: Sequence[Line]
    baseline: Mapping[str, Row]
    """By model, of the attack that changes nothing."""

    @property
    def models(self) -> list[str]:
        """In alphabetical order."""
        return sorted({line.row.model for line in self.lines})

    @cached_property
    def common(self) -> list[str]:
        """The models that every attack of the board was run on."""
        by_attack = defaultdict(set)
        for line in self.lines:
            by_attack[line.label].add(line.row.model)
        return sorted(set.intersection(*by_attack.values()))

    @property
    def seeds(self) -> int:
        """The most repetitions of a row."""
        return max(line.row.seeds for line in self.lines)

    @property
    def unattacked(self) -> float | None:
        """Mean success rate without an attack over the common models."""
        rows = [self.baseline[model] for model in self.common if model in self.baseline]
        rates = [row.asr for row in rows if row.asr is not None]
        return fmean(rates) if rates else None

    @property
    def verdicts(self) -> tuple[int, int, int]:
        """On how many common models the best attack is ahead of, level with, behind the others."""
        counts = Counter[int]()
        for model in self.common:
            rates = {
                line.label: line.row.asr or 0.0
                for line in self.lines
                if line.row.model == model and line.row.attack != BASELINE
            }
            own = rates.pop(self.standings[0].label)
            top = max(rates.values(), default=-1.0)
            counts[(own > top) - (own < top)] += 1
        return counts[1], counts[0], counts[-1]

    @property
    def rivals(self) -> list[Standing]:
        """The attacks that the data do not tell from the best one."""
        return [standing for standing in self.standings[1:] if not standing.apart]

    @cached_property
    def standings(self) -> list[Standing]:
        """Attacks over the common models, the most successful first; behaviours are the clusters.

        Without the baseline, and empty where no model is common to all attacks.
        """
        outcomes: dict[str, dict[str, list[bool]]] = {}
        for line in self.lines:
            if line.row.model not in self.common or line.row.attack == BASELINE:
                continue
            cells = outcomes.setdefault(line.label, defaultdict(list))
            for entry in line.harmful:
                if entry.success is not None:
                    cells[entry.record.behavior_id].append(entry.success)
        rates = {label: success_rate(cells.values()) for label, cells in outcomes.items()}
        known = [(rate, label) for label, rate in rates.items() if rate]
        known.sort(key=lambda pair: (-pair[0].mean, pair[1]))
        best = outcomes[known[0][1]] if known else {}
        return [_standing(label, rate, outcomes[label], best) for rate, label in known]


@dataclass(frozen=True)
class Results:
    """Everything that was read."""

    boards: Sequence[Board]
    categories: Mapping[str, str]
    """By behaviour id, of those that are known."""
    transfers: Sequence[Matrix] = ()
    """Where prompts were sent to other models than they were found on."""
    suites: Mapping[str, Suite] = field(default_factory=dict)
    """What was run, by hash (`Record.suite`)."""

    @property
    def lines(self) -> Iterator[Line]:
        """Of all boards."""
        return (line for board in self.boards for line in board.lines)

    @cached_property
    def entries(self) -> list[Entry]:
        """One for each record, whoever judged it."""
        return list({e.record.key: e for line in self.lines for e in line.entries}.values())

    @property
    def failures(self) -> list[Entry]:
        """The cells that have no result, or not all of it."""
        return [entry for entry in self.entries if entry.record.error]

    @property
    def made(self) -> list[tuple[Mapping[str, str], str, int]]:
        """Software versions, hardware and how many records there are of both, the most first."""
        found = Counter(
            (json.dumps(dict(e.record.versions), sort_keys=True), e.record.hardware)
            for e in self.entries
        )
        return [(json.loads(text), on, count) for (text, on), count in found.most_common()]

    @cached_property
    def agreement(self) -> list[tuple[str, str, float, int, int, int]]:
        """Pairs of judges over the answers that both judged.

        The share on which they agree, how many only the first and only the second calls a success,
        and of how many.
        """
        said: dict[str, dict[str, bool]] = defaultdict(dict)
        for line in self.lines:
            for entry in line.entries:
                if 0 in entry.verdicts and entry.success is not None:
                    said[line.row.judge][entry.record.key] = entry.success
        pairs = []
        for one in sorted(said):
            for other in sorted(said):
                if one < other and (both := said[one].keys() & said[other].keys()):
                    counts = Counter((said[one][key], said[other][key]) for key in both)
                    first, second = counts[True, False], counts[False, True]
                    n = len(both)
                    pairs.append((one, other, 1 - (first + second) / n, first, second, n))
        return pairs


def read_results(folders: Sequence[Path], behaviors: str | None) -> Results:
    """The results in `folders`; categories from the behaviour set or file, or the shipped ones.

    Raises:
        BadInput: a folder without records, or no record in any, or an unknown behaviour set.
    """
    found = read_rows_and_entries(folders)
    if not found:
        raise BadInput(f"no records in {', '.join(map(str, folders))} yet; nothing to report")
    labels = attack_labels([row for row, _ in found])
    guards = defense_labels([row for row, _ in found])
    lines = [
        Line(row, entries, " ".join(filter(None, (labels[row.attack_hash], row.adaptivity))))
        for row, entries in found
    ]
    boards = []
    groups: dict[tuple[Any, ...], list[Line]] = defaultdict(list)
    for line in lines:
        groups[_board(line.row)].append(line)
    for own in groups.values():
        for judge in sorted({line.row.judge for line in own}):
            judged = [line for line in own if line.row.judge == judge]
            judged.sort(key=lambda line: by_success(line.row))
            first = judged[0].row
            baseline = {
                line.row.model: line.row
                for line in lines
                if line.row.attack == BASELINE
                and _board(line.row)[1:] == _board(first)[1:]
                and line.row.judge == judge
            }
            behind = f": {guards[first.defense_hash]}" if first.defense else ""
            boards.append(Board(title_of(first) + behind, judge, judged, baseline))
    rows = load_behaviors(behaviors) if behaviors else shipped_behaviors()
    known = {row.id: row.category for row in rows if row.category}
    suites = {key: ran for folder in folders for key, ran in noted_suites(folder).items()}
    return Results(boards, known, matrices_of(found), suites)


def _standing(
    label: str, rate: Rate, own: Mapping[str, list[bool]], best: Mapping[str, list[bool]]
) -> Standing:
    """An attack beside the best one, paired over the behaviours of both."""
    gaps = [fmean(best[key]) - fmean(own[key]) for key in sorted(own.keys() & best.keys())]
    if not any(gaps):
        return Standing(label, rate, 0.0, 0.0, 0.0)
    low, high = cluster_bootstrap(gaps) if len(gaps) > 1 else (-1.0, 1.0)
    return Standing(label, rate, fmean(gaps), low, high)


def _board(row: Row) -> tuple[Any, ...]:
    """As `board_of`, and each defence by itself: the baseline is the one behind the same."""
    return (*board_of(row), row.defense_hash)
