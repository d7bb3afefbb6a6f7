"""Boards at a terminal: the columns that matter most, the best of each model marked."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Sequence
from itertools import groupby, zip_longest

from rich.box import SIMPLE
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from benchmarks.boards.columns import Column
from benchmarks.boards.leaderboard import (
    board_of,
    columns_of,
    note_of,
    title_of,
    with_baselines,
)
from benchmarks.boards.ranking import BASELINE
from benchmarks.boards.rows import Row
from benchmarks.common.lines import one_line

#: Columns of words, and of figures with what decides about the best, the lower the better.
_WORDS = ("Defence", "Attacker", "Attack", "Found on", "Judge")
_FIGURES: dict[str, Callable[[Row], float | None]] = {
    "ASR": lambda row: -row.asr if row.asr else None,
    "Refusal": lambda row: None,
    "Garbled": lambda row: None,
    "Over-refusal": lambda row: None,
    "KL on harmless": lambda row: None,
    "To first success, s": lambda row: row.first_success_seconds_median,
    "To first success, FLOPs": lambda row: row.first_success_flops_median,
}
#: Characters of a name that are not broken.
_LONGEST = 34
#: Where all rows say the same, the column says nothing.
_TOLD_ONCE = ("Judge", "Attacker", "Defence")


def draw(rows: Sequence[Row], console: Console, *, explain: bool = False) -> None:
    """Draws the boards, a table for each model.

    Args:
        rows: in the order of the boards.
        console: as wide as tables may be.
        explain: also say what the columns mean.
    """
    if not rows:
        console.print("No records.")
        return
    columns = {column.heading: column for column in columns_of(rows)}
    names = [name for name in (*_WORDS, *_FIGURES) if name in columns]
    used = dict.fromkeys(["Attack"])
    for _, group in groupby(rows, key=board_of):
        own = list(group)
        shown = with_baselines(own, rows)
        filled = [name for name in names if _tells(columns[name], name, shown)]
        used |= dict.fromkeys(filled)
        console.print(Text(one_line(title_of(own[0])), style="bold"))
        for model, members in groupby(shown, key=lambda row: row.model):
            listed = list(members)
            counts = sorted({row.n for row in listed})
            requests = f"{' to '.join(map(str, counts[:: max(len(counts) - 1, 1)]))} requests"
            head = Text.assemble((one_line(model), "cyan"), (f", {requests}", "dim"))
            console.print(Padding(head, (1, 0, 0, 1)))
            console.print(_table(listed, [columns[name] for name in filled]))
        for line in note_of(own).split("\n\n"):
            console.print(Text(_plain(line), style="dim"))
        console.print()
    if explain:
        console.print(Text("Green: the best on its model.", style="bold"))
        for name in used:
            console.print(Text.assemble((name, "bold"), f": {columns[name].meaning}"))


def _tells(column: Column, name: str, rows: Sequence[Row]) -> bool:
    cells = {column.cell(row) for row in rows}
    if name in _TOLD_ONCE:
        return len(cells) > 1
    return not cells <= ({"", "0.00"} if name == "Garbled" else {""})


def _table(rows: Sequence[Row], columns: Sequence[Column]) -> Table:
    """The rows of one model."""
    heads = [re.sub(r", | (?=first|harmless)", "\n", column.heading) for column in columns]
    right = [column.heading in _FIGURES for column in columns]
    cells = [
        [Text(_plain(column.cell(row)), style=_style(column, row, rows)) for column in columns]
        for row in rows
    ]
    return _grid(heads, cells, right, ["dim" if row.attack == BASELINE else "" for row in rows])


def _grid(
    heads: Sequence[str],
    rows: Sequence[Sequence[Text]],
    right: Sequence[bool],
    styles: Sequence[str] = (),
) -> Table:
    """A table whose figures stay whole, and whose names go on in the next line."""
    table = Table(box=SIMPLE, show_edge=False, pad_edge=True)
    for at, head in enumerate(heads):
        longest = max((len(row[at]) for row in rows), default=0)
        table.add_column(
            head,
            justify="right" if right[at] else "left",
            no_wrap=right[at],
            overflow="fold",
            min_width=None if right[at] else min(_LONGEST, longest),
        )
    for row, style in zip_longest(rows, styles[: len(rows)], fillvalue=""):
        table.add_row(*(cell if cell else Text("-") for cell in row), style=style)
    return table


def draw_markdown(shown: str, console: Console) -> None:
    """Draws headings, tables and plain lines, as this suite writes them in Markdown."""
    for tabled, group in groupby(shown.splitlines(), key=lambda line: line.startswith("| ")):
        lines = list(group)
        if not tabled:
            for line in lines:
                head = line.startswith("#")
                console.print(Text(_plain(line.lstrip("# ")), style="bold" if head else ""))
            continue
        heads, marks, *rows = [re.split(r" (?<!\\)\| ", line.strip("| ")) for line in lines]
        texts = [[_plain(cell) for cell in row] for row in (heads, *rows)]
        parts = _fitting(texts, console.width)
        if parts is None:
            # Cut short, names could not be told apart.
            for line in lines:
                console.print(Text(line), soft_wrap=True)
            continue
        for part in parts:
            cells = [[_drawn(row[at]) for at in part] for row in texts[1:]]
            right = [marks[at].endswith("--:") for at in part]
            console.print(_grid([texts[0][at] for at in part], cells, right))


def _fitting(rows: Sequence[Sequence[str]], width: int) -> list[list[int]] | None:
    """Columns of tables that fit `width`, each with the first one; None: a pair does not fit."""
    first, *others = [max(map(len, column)) + 3 for column in zip(*rows, strict=True)]
    groups: list[list[int]] = [[0]]
    used = first
    for at, wide in enumerate(others, start=1):
        if used + wide > width and len(groups[-1]) > 1:
            groups.append([0])
            used = first
        groups[-1].append(at)
        used += wide
    return groups if first + max(others, default=0) <= width else None


def _drawn(cell: str) -> Text:
    """What is bold in Markdown is bold."""
    bold = re.fullmatch(r"\*\*(.+)\*\*", cell)
    return Text(bold[1], style="bold") if bold else Text(cell)


def _style(column: Column, row: Row, rows: Sequence[Row]) -> str:
    """Green where no other attack does better."""
    value = _FIGURES.get(column.heading)
    own = value(row) if value and row.attack != BASELINE else None
    if value is None or own is None:
        return ""
    rivals = [
        found
        for other in rows
        if (other.judge, other.defense_hash) == (row.judge, row.defense_hash)
        and other.attack != BASELINE
        and (found := value(other)) is not None
    ]
    return "bold green" if own <= min(rivals) else ""


def _plain(cell: str) -> str:
    """A cell of a Markdown table, as it reads."""
    return one_line(html.unescape(re.sub(r"\\(.)", r"\1", cell)))
