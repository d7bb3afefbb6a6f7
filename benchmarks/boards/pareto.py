"""What a search over two objectives leaves to choose from, as Markdown tables."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attacks.core.errors import BadInput
from attacks.core.parsing import from_json
from benchmarks.storage.folders import ARTEFACTS, bounded, contained

_KERNEL = ("w_max", "w_min", "position", "distance")


def fronts(folder: Path) -> str:
    """A table for each artefact in the results folder `folder` that keeps a Pareto front.

    Raises:
        BadInput: no such folder, or none with a front in it.
    """
    tables = []
    for path in sorted((contained(folder) / ARTEFACTS).glob("*.json")):
        bounded(path)
        try:
            data = from_json(path.read_text("utf-8"))["data"]
            if data.get("front"):
                tables.append(f"### {path.stem}, {_plain(data['mode'])}\n\n{table(data)}")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BadInput(f"{path}: damaged artefact ({type(error).__name__})") from error
    if not tables:
        raise BadInput(
            f"{folder}: no artefact with a Pareto front; run 'abliteration' with trials to get one"
        )
    return "\n".join(tables)


def table(data: Mapping[str, Any]) -> str:
    """The front of one artefact's `data`, fewest refusals first, and the choice in bold.

    Raises:
        KeyError: not the data of a search.
    """
    heads = ["Refusals", "KL, nats", "Direction"]
    heads += [f"{part} {name}" for part in ("attention", "mlp") for name in _KERNEL]
    lines = [f"| {' | '.join(heads)} |", f"|{' --: |' * len(heads)}"]
    for row in data["front"]:
        recipe = row["recipe"]
        depth = recipe["depth"]
        cells = [f"{int(row['refusals'])} of {int(row['harmful'])}", f"{float(row['kl']):.4f}"]
        cells.append("each block's" if depth is None else f"at {float(depth):.2f}")
        cells += [
            f"{float(recipe[part][name]):.2f}" for part in ("attention", "mlp") for name in _KERNEL
        ]
        if row == data["chosen"]:
            cells = [f"**{cell}**" for cell in cells]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _plain(text: object) -> str:
    """Letters, digits and dashes of a name that came from a file."""
    return "".join(letter for letter in str(text) if letter.isalnum() or letter == "-")
