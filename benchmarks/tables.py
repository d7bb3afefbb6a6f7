"""Markdown tables of names and figures, and the names of attacks in them. Imports no torch."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.lines import one_line
from benchmarks.rows import Row


def table(headings: Sequence[str], rows: Sequence[Sequence[str]], *, left: int) -> str:
    """A Markdown table, without final newline; cells are Markdown already, empty ones a dash.

    Args:
        headings: of the columns.
        rows: as many cells as headings, each.
        left: how many columns, from the first on, hold names, which stand to the left.
    """
    lines = [
        list(headings),
        [":--"] * left + ["--:"] * (len(headings) - left),
        *([cell or "-" for cell in row] for row in rows),
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def text(value: str) -> str:
    """`value` as one line of plain text in a Markdown table cell."""
    line = one_line(value)
    for special in "\\`*[]|~":
        line = line.replace(special, f"\\{special}")
    return html.escape(line, quote=False)


def attack_labels(rows: Sequence[Row]) -> dict[str, str]:
    """Attack names by hash, with the parameters that tell attacks of one name apart."""
    names = {}
    for row in rows:
        same = [flat(other.params) for other in rows if other.attack == row.attack]
        varying = [
            f"{key}={json.dumps(value, ensure_ascii=False)}"
            for key, value in flat(row.params).items()
            if any(params.get(key) != value for params in same)
        ]
        names[row.attack_hash] = row.attack + (f" ({', '.join(varying)})" if varying else "")
    return names


def flat(params: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters with those of parts under dotted names."""
    found: dict[str, Any] = {}
    for key, value in params.items():
        if isinstance(value, Mapping):
            found |= {f"{key}.{inner}": own for inner, own in flat(value).items()}
        else:
            found[key] = value
    return found
