"""Markdown tables of names and figures, and the names of attacks in them. Imports no torch."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.boards.rows import Row
from benchmarks.common.lines import one_line


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
    return labels([(row.attack_hash, row.attack, row.params) for row in rows])


def labels(named: Sequence[tuple[str, str, Mapping[str, Any]]]) -> dict[str, str]:
    """Names by hash, of (hash, name, parameters), with the parameters that tell them apart."""
    found = {}
    for key, name, params in named:
        same = [flat(other) for _, called, other in named if called == name]
        varying = [
            f"{field}={json.dumps(value, ensure_ascii=False)}"
            for field, value in flat(params).items()
            if any(other.get(field) != value for other in same)
        ]
        found[key] = name + (f" ({', '.join(varying)})" if varying else "")
    return found


def flat(params: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters with those of parts under dotted names."""
    found: dict[str, Any] = {}
    for key, value in params.items():
        if isinstance(value, Mapping):
            found |= {f"{key}.{inner}": own for inner, own in flat(value).items()}
        else:
            found[key] = value
    return found
